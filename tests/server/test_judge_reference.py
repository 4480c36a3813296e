"""A trajectory as bands, on numbers: what is in, what is out, on which side, and beside own baselines."""

import numpy as np
import pytest

from internist.scaling.transfer import Sizes, Transfer
from internist.schema.conditions import REFERENCE_EDGE
from internist.schema.wire import Facts
from internist_server.judge.outline import blocks_of
from internist_server.judge.reference import Head, Yardstick, trajectory_of
from internist_server.judge.series import JudgedSeries
from internist_server.judge.verdicts import Judge

EVERY = 10
SAME = Sizes(1.0, 1.0, 1.0)
METRICS = ("activation.rms", "update.own", "block.contribution")
PROXY = Head("r", "proxy", 32, 2, 16.0, "mup")


def model(depth):
    """Series of each block, and a learning rate."""
    series = []
    for block in range(depth):
        for metric in METRICS:
            name = f"blocks.{block}" + (".fc" if metric == "update.own" else "")
            facts = Facts(
                role="linear" if metric == "update.own" else "block",
                block=f"blocks.{block}",
                order=block,
                cadence=EVERY,
            )
            series.append(JudgedSeries(len(series) + 1, metric, "module", name, None, "exact", facts))
    facts = Facts(group=0, parameters=100, cadence=EVERY)
    return [*series, JudgedSeries(len(series) + 1, "learning_rate", "group", "0", None, "exact", facts)]


def values(depth, *, factor=1.0, metric=None, rate=1e-3):
    return np.array([*[factor if m == metric or metric is None else 1.0 for _ in range(depth) for m in METRICS], rate])


def yardstick(*, steps=range(0, 200, 2), sizes=SAME, levels=lambda _: 1.0, shares=lambda _: 1.0, depth=2):
    series = [one for one in model(depth) if one.metric != "learning_rate"]
    matrix = np.array([[levels(step)] * len(series) for step in steps], np.float32)
    found = np.array([shares(step) for step in steps])
    trajectory = trajectory_of(series, blocks_of(series), np.array(list(steps)), matrix, found, head=PROXY)
    return Yardstick(trajectory, sizes, Transfer("adam", "adam", declared=True))


def run(held_to, at, *, depth=2, steps=range(0, 120, 4), is_steady=False):
    """A judge after these steps, and what fired; of a steady run it is declared that its rate rises no more."""
    facts = Facts(cadence=EVERY)
    rise = JudgedSeries(900, "schedule.rise", "model", "model", None, "exact", facts)
    judge = Judge([*model(depth), *[rise] * is_steady], mup=False, every=EVERY, is_referenced=True)
    judge.hold_to(held_to)
    found = []
    for step in steps:
        row = np.array([*at(step), *[1.0] * is_steady], np.float32)
        found += judge.judge(step, row, np.isfinite(row)).transitions
    return judge, [t for t in found if t.state == "firing"]


def test_what_the_reference_was_is_well_and_twice_of_it_too():
    for factor in (1.0, 2.0, 0.5):
        judge, alerts = run(yardstick(), lambda _, factor=factor: values(2, factor=factor))
        assert alerts == [] and judge.held == 2 * len(METRICS)


@pytest.mark.parametrize("factor", [1.2 * REFERENCE_EDGE, 1 / (1.2 * REFERENCE_EDGE)])
def test_what_is_further_away_is_out_on_either_side_within_the_third_point(factor):
    _, alerts = run(yardstick(), lambda _: values(2, factor=factor, metric="activation.rms"))

    assert {(t.step, t.basis, t.condition) for t in alerts} == {(8, "reference", "forward")}
    assert alerts[0].ratio == pytest.approx(1.2 * REFERENCE_EDGE, rel=1e-3)
    low, high = alerts[0].band_low, alerts[0].band_high
    assert (low, high) == pytest.approx((1 / REFERENCE_EDGE, REFERENCE_EDGE), rel=1e-3)


def test_a_band_follows_the_trajectory_and_ends_with_it():
    grows = yardstick(steps=range(100), levels=lambda step: 1.0 + step)

    _, with_it = run(grows, lambda step: values(2, factor=1.0 + step), steps=range(100))
    _, without = run(grows, lambda _: values(2), steps=range(100))
    judge, after = run(grows, lambda _: values(2, factor=1000.0), steps=range(300, 400))

    assert with_it == [] and after == [] and judge.summary().state == "not measured"
    assert {t.basis for t in without} == {"reference"}


def test_a_deeper_run_s_blocks_are_held_to_those_as_far_through_the_model_and_its_branches_to_less():
    deeper = yardstick(sizes=Sizes(1.0, 4.0, 1.0))
    at_half = values(8, factor=0.25, metric="block.contribution")

    assert run(deeper, lambda _: at_half, depth=8)[1] == []
    assert {t.series for t in run(deeper, lambda _: values(8), depth=8)[1]} == {
        one.id for one in model(8) if one.metric == "block.contribution"
    }


def test_updates_are_compared_over_the_share_of_the_peak_rate_and_only_from_above_in_a_warm_up():
    """The proxy decays to a tenth; the run is at its peak, then as far down, then still rises to its own."""
    decays = yardstick(shares=lambda step: 1.0 if step < 20 else 0.1, levels=lambda step: 1.0 if step < 20 else 0.1)

    constant = run(decays, lambda _: values(2, metric="update.own"), steps=range(24, 60, 4))[1]
    rising = run(decays, lambda step: values(2, factor=0.01 * step, metric="update.own", rate=1e-5 * step))[1]
    too_much = run(decays, lambda step: values(2, factor=4.0, metric="update.own", rate=1e-5 * (step + 1)))[1]

    by_update = [[t for t in found if t.condition == "update"] for found in (constant, rising, too_much)]
    assert [len(found) for found in by_update] == [0, 0, 2]


def test_the_same_numbers_are_told_whether_the_reference_is_given_before_or_after_the_series():
    early, late = (Judge([], mup=False, every=EVERY, is_referenced=True) for _ in range(2))
    early.hold_to(yardstick())
    for judge in (early, late):
        judge.add_series(model(2))
    late.hold_to(yardstick())
    row = values(2, factor=10.0).astype(np.float32)

    for step in range(0, 12, 4):
        said = [judge.judge(step, row, np.isfinite(row)) for judge in (early, late)]
        assert said[0].transitions == said[1].transitions and np.array_equal(said[0].basis, said[1].basis)
    assert early.state() == late.state()


def test_nothing_where_the_reference_has_something_is_out_and_where_it_has_nothing_either_is_well():
    """As a head that is initialised with zeros: nothing at the first step, something from then on."""
    starts_at_zero = yardstick(levels=lambda step: float(step > 0))
    dead = values(2, factor=0.0, metric="block.contribution")

    assert {t.message.partition(",")[0] for t in run(yardstick(), lambda _: dead)[1]} == {
        f"blocks.{block}: block.contribution is zero" for block in range(2)
    }
    assert run(starts_at_zero, lambda step: values(2, factor=float(step > 0)), steps=range(12))[1] == []


def test_updates_that_are_all_smaller_are_well_once_a_run_has_learned_and_one_alone_is_not():
    def one_alone(_):
        row = values(4)
        row[METRICS.index("update.own")] = 0.1
        return row

    def all_of_them(_):
        return values(4, factor=0.1, metric="update.own")

    held_to = yardstick(steps=range(0, 400, 2))
    told = [
        [t for t in run(held_to, at, depth=4, steps=range(*steps), is_steady=True)[1] if t.condition == "update"]
        for at, steps in ((all_of_them, (0, 60, 4)), (all_of_them, (120, 300, 4)), (one_alone, (120, 300, 4)))
    ]

    assert [len(each) for each in told] == [4, 0, 1]


def test_without_a_yardstick_a_run_that_names_one_is_judged_by_itself():
    judge, alerts = run(None, lambda _: values(2, factor=50.0))

    assert alerts == [] and judge.held == 0
