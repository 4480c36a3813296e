"""R(W) of a run that declares no spectral parametrisation: held to its own start, however slowly it grows."""

import numpy as np
import pytest

from internist.schema.conditions import WEIGHT_GROWTH
from tests.server.judged_runs import constant, series, tell

WEIGHT = "blocks.0.fc.weight"
LAST = 2000


def grown(start, *, by=0.02, last=LAST, **run):
    """A weight whose norm grows by so much a step, which its baseline follows."""
    one = series(0, "weight.operator_norm", WEIGHT, block="blocks.0", cadence=10, **run.pop("facts", {}))
    return tell([(one, lambda steps: start + by * steps)], last=last, **run)


@pytest.mark.parametrize("start", [0.001, 1.0, 1.5])
def test_a_weight_that_grows_slowly_without_end_warns_at_a_multiple_of_its_start_or_of_one(start):
    edge = WEIGHT_GROWTH * max(start, 1.0)

    (fired,) = grown(start).fired()

    assert (fired.severity, fired.rule, fired.basis) == ("warning", "weight_out_of_band", "target")
    assert fired.value == pytest.approx(edge, rel=0.05) and fired.value > edge
    assert f", over {edge:.3g} (band up to {edge:.3g})" in fired.message


def test_the_board_calls_it_drifting_and_says_where_the_band_comes_from():
    board = grown(1.0).judge.verdicts("run", "attempt")

    (verdict,) = [one for one in board.members if one.condition == "spectral_weight"]
    assert (verdict.state, verdict.basis) == ("drifting", "target")
    assert verdict.source == "derived: 25 times its first value, or of 1 where that was less"


def test_one_that_stays_among_its_multiples_is_judged_by_its_own_baseline_with_its_band():
    board = tell([(series(0, "weight.operator_norm", WEIGHT, cadence=10), constant(4.0))]).judge.verdicts("r", "a")

    (verdict,) = [one for one in board.members if one.condition == "spectral_weight"]
    assert (verdict.state, verdict.basis, verdict.band_high) == ("ok", "baseline", pytest.approx(16.0))


def test_an_upper_bound_proves_no_growth_and_a_declared_run_has_the_target_of_theory():
    assert grown(1.0, facts={"bound": "upper"}).fired() == []

    first = grown(1.0, mup=True).fired()[0]
    assert "over 2.5" in first.message and first.step < 200


def test_a_leap_is_critical_by_the_baseline_as_ever():
    law = lambda steps: np.where(steps < 1000, 2.0, 20.0)  # noqa: E731

    (fired,) = tell([(series(0, "weight.operator_norm", WEIGHT, cadence=10), law)], last=1200).fired()

    assert (fired.severity, fired.basis) == ("critical", "baseline")


def test_who_calls_it_the_new_normal_has_it_held_to_that():
    run = grown(1.0, last=1300)
    steps = np.arange(1210, 1301, 10)

    (over,) = run.judge.accept(0, (1.0 + 0.02 * steps[:, None]).astype(np.float32), steps)

    assert over.state == "resolved" and "new normal" in over.message
    said = run.judge.judge(1310, np.array([27.2], np.float32), np.ones(1, bool))
    assert said.transitions == []


def test_the_first_value_survives_in_the_state():
    whole, parts = grown(2.0, last=3000), grown(2.0, last=3000, restart_every=7)

    assert [(t.step, t.message) for t in whole.transitions] == [(t.step, t.message) for t in parts.transitions]
    assert whole.fired()
