"""Experts that no token comes to: what steps do to them is not judged, and their silence is no alert."""

import numpy as np
import pytest

from tests.server.judged_runs import EVERY, series, tell_values

LAST = 800
IDLE_FROM = 400
STEPS = np.arange(0, LAST + 1, EVERY)
BLOCK = "blocks.1"


def of_expert(place, number):
    """The series of one member of a list, and their values while it is used."""
    module = f"{BLOCK}.experts.{place}.fc"
    weight = f"{module}.weight"
    metrics = {
        "activation.rms": 1.0, "gradient.rms": 1e-3, "update.rms": 1e-3, "update.unchanged": 0.0, "weight.rms": 0.1,
        "update.own": 0.01,
    }  # fmt: skip
    of_module = ("activation.rms", "update.own")
    found = []
    for offset, (metric, value) in enumerate(metrics.items()):
        one = series(number + offset, metric, module if metric in of_module else weight, block=BLOCK)
        object.__setattr__(one.facts, "module", module)
        found.append((one, value))
    return found


def told(*, is_called=False, all_stop=False):
    """A run of two experts, of which the first gets nothing from IDLE_FROM on: its gradient is zero and it stays."""
    pairs = [*of_expert(0, 0), *of_expert(1, 10)]
    known = [one for one, _ in pairs]
    values = np.tile(np.array([value for _, value in pairs], np.float32), (STEPS.size, 1))
    values *= np.exp(0.05 * np.random.default_rng(0).standard_normal(values.shape)).astype(np.float32)
    present = np.ones(values.shape, bool)
    later = STEPS >= IDLE_FROM
    for start in (0, 6) if all_stop else (0,):
        values[later, start + 1], values[later, start + 2], values[later, start + 3] = 0.0, 0.0, 1.0
        present[later, start], present[later, start + 5] = is_called, is_called
    return tell_values(known, STEPS, values, present)


def test_an_expert_without_tokens_is_neither_alerted_of_nor_called_violated():
    run = told()

    assert run.fired() == []
    stood = {
        (v.metric, v.state) for v in run.judge.verdicts("r", "a").members if v.subject.startswith(f"{BLOCK}.experts.0")
    }
    assert ("update.unchanged", "not measured") in stood and not {state for _, state in stood} & {
        "violated",
        "drifting",
    }


def test_one_that_is_called_and_gets_no_gradient_has_stopped_learning():
    assert "parameter_stopped_learning" in {change.rule for change in told(is_called=True).fired()}


def test_where_all_of_a_list_stop_none_of_them_is_idle():
    assert "parameter_stopped_learning" in {change.rule for change in told(all_stop=True).fired()}


def test_an_expert_that_has_tokens_again_and_has_moved_meanwhile_is_no_jump():
    pairs = [*of_expert(0, 0), *of_expert(1, 10)]
    values = np.tile(np.array([value for _, value in pairs], np.float32), (STEPS.size, 1))
    present = np.ones(values.shape, bool)
    idle = STEPS % (2 * EVERY) == 0  # at every other sample: between two of them it is stepped
    values[idle, 1], values[idle, 2], values[idle, 3] = 0.0, 0.0, 1.0
    present[idle, 0] = present[idle, 5] = False
    values[:, 4] = 0.1 + 1e-3 * STEPS

    assert tell_values([one for one, _ in pairs], STEPS, values, present).fired("weight_jump") == []


@pytest.mark.parametrize("name", ["mlp.0", "layer"])
def test_what_is_in_no_list_of_modules_that_are_alike_is_never_idle(name):
    module = f"{BLOCK}.{name}"
    one, other = (
        series(0, "gradient.rms", f"{module}.weight", block=BLOCK),
        series(1, "activation.rms", f"{BLOCK}.mlp.2"),
    )
    object.__setattr__(one.facts, "module", module)
    values = np.ones((STEPS.size, 2), np.float32)
    values[STEPS >= IDLE_FROM, 0] = 0.0

    run = tell_values([one, other], STEPS, values, np.ones(values.shape, bool))

    assert [change.rule for change in run.fired()] == ["parameter_stopped_learning"]
