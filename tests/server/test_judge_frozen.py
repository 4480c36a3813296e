"""What is wrong does not become what it is measured by: baselines of firing checks, and new normals."""

import numpy as np
import pytest

from tests.server.judged_runs import EVERY, Law, constant, series, tell
from tests.server.test_judge_sick import while_wrong

FIRST = 400


def sick(until: float, *, last: int, factor: float = 30.0):
    laws = [(series(0, "activation.rms", "blocks.0", role="block"), while_wrong(factor, FIRST, until))]
    return tell(laws, last=last, noise=0.05)


def test_a_fault_that_lasts_is_never_learned():
    told = sick(until=1e9, last=20_000)

    assert [change.state for change in told.transitions] == ["pending", "firing"]
    (worst, *_) = told.judge.verdicts("r", "a").members
    assert worst.state == "violated"
    assert worst.ratio == pytest.approx(30, rel=0.2)


def test_a_fault_that_ends_is_measured_against_the_band_from_before_it():
    told = sick(until=6_000, last=7_000)

    (resolved,) = told.resolved()
    assert 6_000 <= resolved.step <= 6_000 + 4 * EVERY
    assert resolved.band_high == pytest.approx(told.fired()[0].band_high)
    assert f"inside the band up to {resolved.band_high:.3g} it had" in resolved.message


def test_the_points_of_a_fault_that_ended_make_no_baseline():
    told = sick(until=3_000, last=12_000)

    bands = [
        judgement.bands.edges[:, 3]
        for judgement in told.judgements
        if judgement.step > 3_000 and judgement.bands.edges.size
    ]
    assert max(float(edges.max()) for edges in bands) < 8
    assert len(told.fired()) == 1


def test_a_new_normal_is_measured_by_itself_and_the_resolve_says_so():
    law: Law = while_wrong(30.0, FIRST, 1e9)
    one = series(0, "activation.rms", "blocks.0", role="block")
    judge = tell([(one, law)], last=1000).judge
    steps = np.arange(FIRST, 1001, EVERY)

    (resolved,) = judge.accept(0, np.full((steps.size, 1), 30.0, np.float32), steps)

    assert resolved.state == "resolved" and "new normal" in resolved.message
    later = [judge.judge(step, np.array([value], np.float32), np.array([True])) for step, value in [
        (1010, 30.0), (1020, 31.0), (1030, 200.0), (1040, 200.0), (1050, 200.0),
    ]]  # fmt: skip
    assert [change.state for said in later for change in said.transitions] == ["pending", "firing"]
    assert judge.accept(7, np.ones((1, 1), np.float32), np.array([5])) == []


def test_a_head_that_shares_its_criterion_with_nobody_falls_with_its_condition():
    falls: Law = lambda steps: np.where(steps < 1000, 1.0, 0.05)  # noqa: E731
    biases = [(series(n, "update.abs_max", f"blocks.{n}.bias"), falls) for n in range(6)]
    still = [(series(n, "update.abs_max", f"blocks.{n}.bias"), constant(1.0)) for n in range(6)]
    head = (series(6, "update.head_norm", "head.weight"), falls)

    assert tell([*biases, head], last=1100).fired() == []
    assert [change.series for change in tell([*still, head], last=1100).fired()] == [6]


def test_nothing_is_too_small_where_most_modules_fall_together():
    together: Law = lambda steps: np.where(steps < 1000, 1.0, 0.05)  # noqa: E731
    alone: Law = lambda steps: np.where(steps < 1000, 1.0, 0.002)  # noqa: E731
    laws = [(series(n, "update.own", f"blocks.{n}.mlp"), together) for n in range(6)]
    laws.append((series(6, "update.own", "blocks.6.mlp"), alone))
    laws.append((series(7, "update.own", "blocks.7.mlp"), constant(1.0)))

    fired = tell(laws, last=1100).fired()

    assert [change.series for change in fired] == [6]
