"""Pauses and evaluations: what keeps a run from stepping is told with its heartbeats."""

import os
import time

import msgspec
import pytest
import torch
from torch import nn

import internist
from internist.monitor.pauses import UNNAMED, Pauses
from internist.schema.wire import MAX_NAME_LENGTH, Heartbeat
from tests.client.ship.small_server import SmallServer


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A watched model, its optimizer, its monitor, and the server that hears of it."""
    for name in [n for n in os.environ if n.startswith("INTERNIST_")]:
        monkeypatch.delenv(name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SmallServer() as server:
        monitor = internist.watch(model, optimizer, server=server.address, mode="online", directory=tmp_path)
        yield model, optimizer, monitor, server
        internist.unwatch()


def step(model, optimizer):
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def heartbeats(server):
    bodies = [request.body for request in list(server.requests) if request.path.endswith("/heartbeat")]
    return [msgspec.json.decode(body, type=Heartbeat) for body in bodies]


def test_a_pause_is_told_at_once_with_its_reason(run):
    _, _, monitor, server = run

    with monitor.pause("checkpoint"):
        assert server.wait_for(lambda: any(one.pause == "checkpoint" for one in heartbeats(server)))

    assert monitor._pauses.reason(steps=monitor.steps) == ""


def test_the_next_step_ends_a_pause_that_nobody_ended(run):
    model, optimizer, monitor, _ = run
    step(model, optimizer)
    monitor.pause("rollout")
    assert monitor._pauses.reason(steps=monitor.steps) == "rollout"

    step(model, optimizer)

    assert monitor._pauses.reason(steps=monitor.steps) == ""


def test_a_pause_inside_another_leaves_the_outer_one_open():
    pauses = Pauses()
    with pauses.begin("evaluation", steps=3):
        with pauses.begin("checkpoint", steps=3) as inner:
            assert pauses.reason(steps=3) == "checkpoint"
            inner.end()
        assert pauses.reason(steps=3) == "evaluation"
    assert pauses.reason(steps=3) == ""


@pytest.mark.parametrize(("reason", "told"), [("", UNNAMED), ("x" * 9999, "x" * MAX_NAME_LENGTH), (None, "None")])
def test_any_reason_is_told_as_far_as_it_can_be(reason, told):
    pauses = Pauses()
    pauses.begin(reason, steps=0)

    assert pauses.reason(steps=0) == told


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_pause_of_a_run_that_tells_nobody_costs_nothing(mode, tmp_path):
    model = nn.Linear(2, 2)
    monitor = internist.watch(model, mode=mode, directory=tmp_path)

    with monitor.pause("checkpoint"):
        pass
    monitor.finish()
    with monitor.pause("checkpoint"):
        pass


def test_an_error_inside_a_pause_is_the_users_own(run):
    _, _, monitor, _ = run

    with pytest.raises(KeyError), monitor.pause("checkpoint"):
        raise KeyError("disk")


def test_an_evaluation_keeps_the_run_from_standing_still(run):
    model, optimizer, monitor, _ = run
    step(model, optimizer)
    monitor._observer.step_ended = monitor._observer.evaluated = time.monotonic() - 100  # as if long ago
    assert monitor._progress()[1] >= 100_000
    model.eval()

    with torch.no_grad():
        model(torch.ones(2, 4))

    assert monitor._progress() == (0, pytest.approx(0, abs=50_000))


def test_training_is_not_an_evaluation(run):
    model, _, monitor, _ = run
    monitor._observer.step_ended = monitor._observer.evaluated = time.monotonic() - 100

    model(torch.ones(2, 4))

    assert monitor._progress()[1] >= 100_000
