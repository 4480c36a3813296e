"""Where a scalar belongs that was logged with a step of its own; judging never sees a far step."""

import numpy as np
import pytest
import torch
from torch import nn

import internist
from internist.monitor.axes import PLAUSIBLE_STEPS, Place, place, whole_number
from tests.client.points import read


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    yield
    internist.unwatch()


@pytest.mark.parametrize(
    ("number", "axis", "counted", "expected"),
    [
        (100, None, True, Place(100)),
        (99, None, True, Place(99)),
        (101, None, True, Place(101)),
        (102, None, True, Place(100, "step", 102.0)),
        (3, None, True, Place(100, "step", 3.0)),
        (500_000, None, True, Place(100, "step", 500_000.0)),
        (100, "epoch", True, Place(100, "epoch", 100.0)),
        (3, "epoch", False, Place(100, "epoch", 3.0)),
        (500_000, None, False, Place(500_000)),
        (PLAUSIBLE_STEPS + 1, None, False, Place(100, "step", PLAUSIBLE_STEPS + 1.0)),
        (10**400, "tokens", True, Place(100, "tokens", float("inf"))),
    ],
)
def test_a_number_is_a_step_only_where_it_can_be_one(number, axis, counted, expected):
    assert place(number, axis=axis, under_way=100, counted=counted) == expected


@pytest.mark.parametrize(
    "value",
    [3, np.int64(3), np.uint8(3), np.float32(3), 3.0, torch.tensor(3), torch.tensor(3, dtype=torch.int16), np.array(3)],
)
def test_whole_numbers_are_read_from_whatever_holds_one(value):
    assert whole_number(value) == 3


@pytest.mark.parametrize(
    "value",
    [
        True, np.bool_(True), torch.tensor(True), -1, 2.5, float("nan"), float("inf"), "3", None, [3], {},
        torch.tensor([3]), torch.tensor(3j), torch.tensor(3, device="meta"), torch.tensor(3.5),
    ],
)  # fmt: skip
def test_anything_else_is_no_whole_number(value):
    assert whole_number(value) is None


def train(steps, log):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    for step in range(steps):
        model(torch.ones(1, 3)).sum().backward()
        log(step)
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish()
    points, series, frames = read(monitor.directory)
    assert max(frame.step for frame in frames) <= steps  # nothing is far ahead
    return points, series


def test_tokens_are_an_axis_and_never_a_step():
    points, series = train(6, lambda step: internist.log({"val/loss": 4.0 - step}, step=(step + 1) * 500_000))

    assert points["val/loss", "model", None] == {step: 4.0 - step for step in range(6)}
    assert points["step", "model", None] == {step: (step + 1) * 500_000.0 for step in range(6)}
    assert series["val/loss", "model", None].facts.axis == "step"
    assert series["step", "model", None].facts.axis is None


def test_epochs_beside_steps_are_kept_where_they_were_logged():
    points, series = train(30, lambda step: step % 10 or internist.log({"val/loss": step}, step=step // 10))

    assert points["val/loss", "model", None] == {0: 0.0, 10: 10.0, 20: 20.0}
    assert points["step", "model", None] == {10: 1.0, 20: 2.0}
    assert series["val/loss", "model", None].facts.axis == "step"


def test_an_axis_that_is_named_gives_the_position_its_name():
    points, series = train(3, lambda step: internist.log({"val/loss": 1.0}, step=step, axis="epoch"))

    assert points["epoch", "model", None] == {0: 0.0, 1: 1.0, 2: 2.0}
    assert series["val/loss", "model", None].facts.axis == "epoch"


@pytest.mark.parametrize("offset", [0, 1])
def test_loops_that_count_from_0_or_from_1_log_steps(offset):
    points, series = train(4, lambda step: internist.log({"val/loss": step}, step=np.int64(step + offset)))

    assert points["val/loss", "model", None] == {step + offset: float(step) for step in range(4)}
    assert series["val/loss", "model", None].facts.axis is None


def test_without_an_optimizer_the_users_own_number_is_the_step():
    model = nn.Linear(3, 2)
    monitor = internist.watch(model)
    for step in range(250):
        model(torch.ones(1, 3)).sum().backward()
        monitor.log(loss=step, step=step * 7)
    monitor.finish()

    assert read(monitor.directory)[0]["loss", "model", None] == {step * 7: float(step) for step in range(250)}


def test_a_step_that_is_no_number_is_left_out_and_said_once(caplog):
    points, _ = train(3, lambda step: internist.log({"good": 1.0, "bad": 2.0}, step=step + 0.5))

    assert ("good", "model", None) not in points
    assert caplog.text.count("log(step=") == 1
