"""What comes at every step is judged at every step, by its own last values, and never behind an alarm on the loss."""

import numpy as np
import pytest

from benchmarks.faults.alarms import loss_alarms
from internist_server.judge.verdicts import Judge
from tests.server.judged_runs import series, tell_values

FIRST = 401
LAST = 500
LOSS = series(0, "loss", "", cadence=1)
NORM = series(1, "gradient.norm_before_clip", "", cadence=1)


def falling_loss(seed: int) -> np.ndarray:
    """A loss that falls as losses do, with noise."""
    steps = np.arange(LAST)
    return (2 + 3 / np.sqrt(steps + 1)) * np.exp(0.03 * np.random.default_rng(seed).standard_normal(LAST))


def judged(one, values, *, restart_every=None):
    """A run of which one value is known at every step."""
    column = np.asarray(values, np.float32)[:, None]
    return tell_values([one], np.arange(len(values)), column, np.isfinite(column) | True, restart_every=restart_every)


@pytest.mark.parametrize("seed", range(8))
def test_a_loss_that_falls_with_noise_is_well(seed):
    assert judged(LOSS, falling_loss(seed)).fired() == []


@pytest.mark.parametrize("factor", [1.3, 3.0, 100.0])
def test_a_loss_that_rises_alarms_no_later_than_an_alarm_on_the_loss(factor):
    loss = falling_loss(0)
    loss[FIRST:] *= factor

    (fired,) = judged(LOSS, loss).fired()

    assert fired.condition == "loss" and fired.cause == "model"
    assert fired.step <= loss_alarms(loss)[0] == FIRST + 2
    assert f"band {fired.band_low:.3g} to {fired.band_high:.3g}" in fired.message


def test_a_loss_that_falls_off_a_cliff_alarms_too():
    loss = falling_loss(1)
    loss[FIRST:] /= 20

    (fired,) = judged(LOSS, loss).fired()

    assert (fired.condition, fired.step) == ("loss", FIRST + 2)


def test_a_loss_that_leaps_for_a_while_is_one_incident():
    loss = falling_loss(2)
    loss[FIRST : FIRST + 60 : 6] = 2.0  # back for one step in six
    loss[FIRST : FIRST + 60] *= np.where(np.arange(60) % 6, 10, 1)

    told = judged(LOSS, loss)

    assert len(told.fired()) == 1
    (resolved,) = told.resolved()
    assert FIRST + 60 < resolved.step < FIRST + 90


def test_a_loss_that_stays_high_is_never_learned_unless_someone_says_so():
    loss = np.concatenate([falling_loss(3), np.full(2000, 8.0)])
    told = judged(LOSS, loss)
    assert [change.state for change in told.transitions] == ["pending", "firing"]

    (resolved,) = told.judge.accept(0, np.full((50, 1), 8.0, np.float32), np.arange(2000, 2050))

    assert "new normal" in resolved.message
    step = told.judge.judged_step or 0
    later = [told.judge.judge(step + n, np.array([8.0], np.float32), np.array([True])) for n in range(1, 9)]
    assert [change for said in later for change in said.transitions] == []


@pytest.mark.parametrize("values", [np.full(LAST, -1.0), np.sin(np.arange(LAST) / 9)])
def test_a_loss_that_is_not_always_positive_is_judged_for_being_finite_alone(values):
    told = judged(LOSS, values)

    assert told.fired() == []
    (verdict,) = [one for one in told.judge.verdicts("r", "a").members if one.condition == "loss"]
    assert (verdict.state, verdict.reason) == ("not measured", "its values are not all positive")


def test_a_gradient_whose_norm_scatters_by_multiples_is_well_until_it_explodes():
    norm = np.exp(0.5 * np.random.default_rng(4).standard_normal(LAST))
    assert judged(NORM, norm).fired() == []
    norm[FIRST:] *= 100

    (fired,) = judged(NORM, norm).fired()

    assert (fired.condition, fired.step) == ("gradient_norm", FIRST + 2)


def test_a_judge_that_is_rebuilt_from_its_bytes_says_the_same():
    loss = falling_loss(5)
    loss[FIRST:] *= 2

    whole, pieces = judged(LOSS, loss), judged(LOSS, loss, restart_every=7)

    assert [(c.state, c.step, c.message) for c in whole.transitions] == [
        (c.state, c.step, c.message) for c in pieces.transitions
    ]
    assert Judge([LOSS], mup=False, every=10, state=whole.judge.state()).judged_step == LAST - 1


def test_where_the_loss_leaves_its_band_what_is_pending_in_a_module_fires_with_it_and_is_named():
    module = series(1, "activation.rms", "blocks.1", role="block", block="blocks.1")
    steps = np.arange(LAST)
    values = np.stack([falling_loss(6), np.ones(LAST)], axis=1)
    values[400:] *= (30, 9)
    present = np.stack([np.ones(LAST, bool), steps % 10 == 0], axis=1)

    told = tell_values([LOSS, module], steps, values.astype(np.float32), present)

    assert [(change.series, change.step) for change in told.fired()] == [(1, 402), (0, 402)]
    assert told.judge.summary().sentence.startswith("forward - blocks.1 output is 9.0x its baseline since step 400")
