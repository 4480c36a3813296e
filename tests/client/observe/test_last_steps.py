"""What is known of the steps before an end that is not well, or before a loss that is no number."""

import pytest
import torch
from torch import nn

import internist
from internist.record.trail import STEPS
from internist.schema.grid import is_on_grid
from tests.client.points import read

EVERY = 50
RATE, NORM = ("learning_rate", "0", None), ("gradient.norm_before_clip", "model", None)
REGULAR = 128
"""From here on light samples lie sixteen steps apart."""


def train(tmp_path, *, steps, spoil=None):
    """A run that clips, with a rate of its own at each step; its monitor, which is not finished."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path, every=EVERY, max_overhead=0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1)
        loss = (model(torch.ones(1, 3)) * (float("nan") if step == spoil else 1.0)).square().sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, monitor


@pytest.mark.parametrize("outcome", ["failed", "killed"])
def test_before_an_end_that_is_not_well_every_step_is_told(tmp_path, outcome):
    model, monitor = train(tmp_path, steps=REGULAR + STEPS)

    monitor.finish(outcome)
    points = read(monitor.directory)[0]

    last = range(REGULAR + 1, REGULAR + STEPS)
    assert {step: points[RATE][step] for step in last} == pytest.approx({step: 1e-3 * (step + 1) for step in last})
    assert set(last) <= set(points[NORM]) and model is not None


def test_a_run_that_ends_well_leaves_its_samples_alone(tmp_path):
    model, monitor = train(tmp_path, steps=REGULAR + STEPS)

    monitor.finish()

    steps = read(monitor.directory)[0][RATE]
    assert all(is_on_grid(step, EVERY) for step in steps) and model is not None


def test_once_the_loss_is_no_number_the_steps_before_are_told_and_the_run_goes_on(tmp_path):
    model, monitor = train(tmp_path, steps=REGULAR + 30, spoil=REGULAR + 20)

    monitor.finish()
    points = read(monitor.directory)[0]

    assert set(range(REGULAR, REGULAR + 20)) <= set(points[RATE])
    assert set(points[NORM]) >= set(range(REGULAR, REGULAR + 20)) and model is not None


@pytest.mark.parametrize("factor", [10.0, 0.1, 0.0])
def test_a_rate_that_leaps_between_two_samples_is_told_at_its_step_with_what_was_meant(tmp_path, factor):
    """And so is what comes back; where nothing leaps nothing is told but samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    first, second = ({"params": list(layer.parameters()), "lr": 0.01} for layer in model)
    optimizer = torch.optim.SGD([first, second])
    leap, back = REGULAR + 3, REGULAR + 7

    def multiplier(step):
        return factor if leap <= step < back else 1.0

    monitor = internist.watch(
        model, optimizer, mode="offline", directory=tmp_path, every=EVERY, max_overhead=0, schedule=multiplier
    )
    for step in range(REGULAR + 12):
        optimizer.param_groups[1]["lr"] = 0.01 * multiplier(step)
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish()
    points = read(monitor.directory)[0]

    told = {
        metric: {
            group: {step: value for step, value in points[metric, group, None].items() if step > REGULAR}
            for group in "01"
        }
        for metric in ("learning_rate", "schedule.multiplier")
    }
    assert told["learning_rate"] == {
        "0": {leap: pytest.approx(0.01), back: pytest.approx(0.01)},
        "1": {leap: pytest.approx(0.01 * factor), back: pytest.approx(0.01)},
    }
    assert told["schedule.multiplier"]["1"] == {leap: pytest.approx(factor), back: 1.0}
    assert {leap, back} <= set(points["weight_decay", "1", None])
