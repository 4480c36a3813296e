"""The loss that is recorded is the watched model's own, or none; a forward that raised leaves nothing behind."""

import pytest
import torch
from torch import nn

import internist
from tests.client.points import read


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    torch.manual_seed(0)


def model():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def losses(monitor):
    monitor.finish()
    return read(monitor.directory)[0].get(("loss", "model", None), {})


def test_another_models_loss_is_not_taken_for_this_ones():
    actor, critic = model(), model()
    first, second = torch.optim.SGD(actor.parameters(), lr=0.1), torch.optim.SGD(critic.parameters(), lr=0.1)
    monitor, expected = internist.watch(actor, first, every=1), {}
    for step in range(4):
        x = torch.randn(3, 4)
        mine, other = actor(x).square().mean(), (critic(x) - 50).square().mean()
        other.backward()
        mine.backward()
        first.step()
        second.step()
        first.zero_grad()
        second.zero_grad()
        expected[step] = mine.item()

    assert losses(monitor) == pytest.approx(expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_loss_is_found_where_backward_is_called(scaled):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    monitor, expected = internist.watch(net, optimizer, every=1), {}
    for step in range(3):
        value = net(torch.randn(3, 4)).square().mean()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        expected[step] = value.item()

    assert losses(monitor) == pytest.approx(expected)


def test_of_several_backwards_in_a_round_no_loss_is_guessed():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = internist.watch(net, optimizer, every=1)
    for _ in range(4):
        for _ in range(2):
            (net(torch.randn(3, 4)).square().mean() / 2).backward()
        optimizer.step()
    (entry,) = [e for e in monitor.coverage() if e.family == "loss"]

    assert entry.state == "silent"
    assert "internist.log(loss=loss)" in entry.reason
    assert losses(monitor) == {}


def test_a_forward_that_raised_is_none_of_the_steps():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.first(x)
            if len(x) > 8:
                raise torch.OutOfMemoryError("too large")
            return self.second(hidden)

    net = Fails()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    monitor, expected = internist.watch(net, optimizer, every=1), {}
    for step in range(4):
        with pytest.raises(torch.OutOfMemoryError):
            net(torch.full((16, 4), 1000.0))
        x = torch.randn(8, 4)
        expected[step] = net.first(x).detach().square().mean().sqrt().item()
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    states = {e.state for e in monitor.coverage()}
    monitor.finish()
    points, _, _ = read(monitor.directory)

    assert points["activation.rms", "first", None] == pytest.approx(expected, rel=1e-5)
    assert sorted(points["update.feature", "second", None]) == [0, 1, 2, 3]
    assert states == {"measured"}


def test_an_empty_batch_ends_nothing():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    monitor = internist.watch(net, optimizer, every=1)
    for step in range(3):
        net(torch.randn(0 if step == 1 else 3, 4)).square().sum().backward()
        optimizer.step()
    monitor.finish()
    points, _, _ = read(monitor.directory)

    assert sorted(points["update.feature", "2", None]) == [0, 2]
