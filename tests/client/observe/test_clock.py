"""The clock counts rounds, whichever optimizers step, and is not stopped by those that do not."""

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
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))


def sgd(module, lr=0.01):
    return torch.optim.SGD(module.parameters(), lr=lr)


def rounds(net, optimizers, steps, step):
    monitor = internist.watch(net, optimizers, every=1)
    for place in range(steps):
        net(torch.ones(1, 3)).square().sum().backward()
        step(place)
    counted = monitor._observer.clock.step
    monitor.finish()
    return counted, read(monitor.directory)[0]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("rare", [1, 2, 3, 4])
def test_an_optimizer_that_steps_more_rarely_makes_no_round_of_its_own(named, rare):
    net = model()
    first, second = sgd(net[0]), sgd(net[1])

    def step(place):
        first.step()
        if place % rare == rare - 1:
            second.step()

    counted, points = rounds(net, [first, second] if named else None, 12, step)

    assert counted in (11, 12)  # the last round may wait for the next forward
    assert sorted(points["update.rms", "0.weight", None]) == list(range(12))


@pytest.mark.parametrize("named", [True, False])
def test_an_optimizer_that_is_made_anew_goes_on_counting(named):
    net = model()
    box = [sgd(net)]

    def step(place):
        if place in (4, 8):
            box[0] = sgd(net, lr=0.001 * place)
        box[0].step()

    counted, points = rounds(net, box[0] if named else None, 12, step)

    assert counted in (11, 12)
    assert sorted(points["update.rms", "0.weight", None]) == list(range(12))
    rates = {step: rate for (m, _, _), found in points.items() if m == "learning_rate" for step, rate in found.items()}
    assert [rates[place] for place in (3, 4, 8)] == pytest.approx([0.01, 0.004, 0.008])


def test_a_named_optimizer_that_never_steps_is_not_waited_for():
    net, other = model(), nn.Linear(2, 2)
    mine = sgd(net)

    counted, points = rounds(net, [mine, sgd(other)], 6, lambda _: mine.step())

    assert counted in (5, 6)
    assert sorted(points["update.rms", "1.bias", None]) == list(range(6))


def test_the_state_that_is_loaded_after_watching_tells_the_step():
    earlier, net = model(), model()
    done, optimizer = torch.optim.Adam(earlier.parameters()), torch.optim.Adam(net.parameters())
    for _ in range(7):
        earlier(torch.ones(1, 3)).sum().backward()
        done.step()
    monitor = internist.watch(net, optimizer, every=1)
    optimizer.load_state_dict(done.state_dict())
    for _ in range(3):
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    monitor.finish()
    points, _, _ = read(monitor.directory)

    assert sorted(points["update.rms", "0.weight", None]) == [7, 8, 9]


def test_an_optimizer_whose_step_raised_holds_nothing_up():
    net = model()
    optimizer = sgd(net)

    def fails():
        raise RuntimeError("of the user's own")

    def step(place):
        if place == 3:
            with pytest.raises(RuntimeError, match="own"):
                optimizer.step(fails)
        else:
            optimizer.step()

    counted, _ = rounds(net, None, 8, step)

    assert counted in (6, 7)


def test_groups_of_two_optimizers_have_numbers_and_names_of_their_own():
    net = model()
    first = torch.optim.SGD([{"params": [net[0].weight], "name": "x"}, {"params": [net[0].bias], "name": "x"}], lr=0.02)
    second = torch.optim.SGD(net[1].parameters(), lr=0.03)
    monitor = internist.watch(net, [first, second], every=1)
    for _ in range(2):
        net(torch.ones(1, 3)).sum().backward()
        first.step()
        second.step()
    monitor.finish()
    points, series, _ = read(monitor.directory)

    groups = {s.subject: s.facts.group for s in series.values() if s.metric == "learning_rate"}
    assert set(groups) == {"x", "x.1", "1.0"}
    assert len(set(groups.values())) == 3
    assert series["update.rms", "1.weight", None].facts.group == groups["1.0"]
    assert series["update.rms", "0.bias", None].facts.group == groups["x.1"]
    assert points["learning_rate", "1.0", None][0] == pytest.approx(0.03)
