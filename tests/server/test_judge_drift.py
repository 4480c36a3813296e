"""Drift: a trend that leaves its band is foretold, and what is well is not called drifting."""

import numpy as np
import pytest

from internist.schema.views import Verdict
from internist_server.judge import drift
from internist_server.judge.drift import Trends
from tests.server.judged_runs import Law, Told, constant, series, tell


def last_verdict(told: Told) -> Verdict:
    return next(v for v in told.judge.verdicts("r", "a").members if v.condition != "numeric")


def test_of_logits_that_grow_like_steps_the_crossing_is_foretold_while_they_are_well():
    logits = series(0, "attention.max_logit", "attn")
    law: Law = lambda steps: 0.04 * steps  # noqa: E731

    verdict = last_verdict(tell([(logits, law)], last=2000, noise=0.02))

    assert verdict.state == "ok"
    assert verdict.crossing_step == pytest.approx(2500, rel=0.03)
    assert verdict.crossing_low is not None and verdict.crossing_high is not None
    assert verdict.crossing_low <= 2500 <= verdict.crossing_high
    assert "leaves its band near step 2" in verdict.reason


def test_a_drift_alone_opens_no_alert():
    law: Law = lambda steps: 0.04 * steps  # noqa: E731

    assert tell([(series(0, "attention.max_logit", "attn"), law)], last=2400).transitions == []


@pytest.mark.parametrize("law", [constant(50.0), lambda s: 50 * (s / 2000) ** 0.4, lambda s: 90 * np.exp(-s / 4000)])
@pytest.mark.parametrize("seed", range(5))
def test_what_stands_still_grows_slowly_or_falls_does_not_drift_to_a_limit_above(law, seed):
    told = tell([(series(0, "attention.max_logit", "attn"), law)], last=2000, noise=0.1, seed=seed)

    assert last_verdict(told).crossing_step is None


def test_a_value_that_falls_is_foretold_to_reach_the_lower_edge_of_a_two_sided_band():
    law: Law = lambda steps: 1e-2 * np.minimum(1, (2000 / np.maximum(steps, 1)) ** 2)  # noqa: E731

    verdict = last_verdict(tell([(series(0, "update.own", "mlp", cadence=10), law)], last=3200, noise=0.02))

    assert verdict.state == "ok"
    assert verdict.crossing_step == pytest.approx(4000, rel=0.05)  # a quarter of its baseline


def test_nothing_is_foretold_of_a_trend_that_has_not_gone_half_of_the_way():
    law: Law = lambda steps: 0.01 * steps  # noqa: E731

    verdict = last_verdict(tell([(series(0, "attention.max_logit", "attn"), law)], last=4_000, noise=0.02))

    assert (verdict.state, verdict.crossing_step) == ("ok", None)
    assert "leaves" not in verdict.reason


def test_a_trend_ends_when_the_value_levels_off():
    law: Law = lambda steps: 0.04 * np.minimum(steps, 1500)  # noqa: E731

    assert last_verdict(tell([(series(0, "attention.max_logit", "attn"), law)], last=3000)).crossing_step is None


def test_the_regression_matches_one_with_explicit_weights():
    steps = np.array([10, 20, 40, 50, 90, 100, 150, 200, 210, 300])
    logs = np.log2(steps**0.7) + 0.1 * np.sin(steps)
    trends = Trends.none(1)
    for step, log in zip(steps.tolist(), logs.tolist(), strict=True):
        drift.observe(trends, age=step, logs=np.array([log], np.float32), measured=np.array([True]))

    x = np.log2(steps)
    fades = np.minimum(np.diff(x) / drift.MEMORY_OCTAVES, 1 / drift.MEMORY_POINTS)
    weights = np.exp2(-np.append(np.cumsum(fades[::-1])[::-1], 0))
    slope, level = np.polyfit(x, logs, 1, w=np.sqrt(weights))
    assert trends.products[0] / trends.steps[0] == pytest.approx(slope, rel=1e-3)
    expected = level + slope * trends.mean_age[0]
    assert trends.mean_value[0] == pytest.approx(expected, rel=1e-3)


def test_points_that_are_not_measured_leave_a_trend_as_it_is():
    trends = Trends.none(2)
    for step in (10, 20, 30):
        drift.observe(trends, age=step, logs=np.full(2, step, np.float32), measured=np.array([True, False]))

    assert trends.weight[0] > 1 and trends.weight[1] == 0
    assert np.isinf(trends.lowest[1])
