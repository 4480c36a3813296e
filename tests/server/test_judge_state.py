"""The judge's state: what it says depends on the steps alone, not on how they were grouped or when it was restored."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internist_server.judge import packing
from internist_server.judge.errors import JudgeStateError, OutOfOrder
from internist_server.judge.verdicts import Judge, JudgedSeries, StepJudgement
from tests.server.judged_runs import (
    EVERY,
    Law,
    constant,
    measured,
    sampled_steps,
    series,
    tell,
    tell_values,
    warm_up_cosine,
)
from tests.server.test_judge_healthy import NOISE, SHAPES, healthy_run
from tests.server.test_judge_sick import while_wrong, with_law


def eventful_run() -> list[tuple[JudgedSeries, Law]]:
    """A run in which everything happens: mistakes, NaN, logits, a jump, drift, silence."""
    laws = healthy_run(SHAPES["growing like the square root of steps"], warm_up_cosine(1e-3, warm_up=150, last=1500))
    laws = with_law(laws, while_wrong(30.0), metric="update.own", block="blocks.2")
    laws = with_law(laws, while_wrong(np.nan, 600, 620), metric="update.own", block="blocks.1")
    laws = with_law(laws, while_wrong(np.inf, 640, 650), metric="loss")
    laws = with_law(laws, while_wrong(60.0, 500, 1200), metric="attention.max_logit", block="blocks.3")
    laws = with_law(laws, while_wrong(6.0, 900, 940), metric="learning_rate")
    return with_law(laws, lambda steps: np.exp2(steps / 300), metric="activation.rms", block="blocks.5")


def same(left: Sequence[StepJudgement], right: Sequence[StepJudgement]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert repr([a.step, a.schedule, a.transitions]) == repr([b.step, b.schedule, b.transitions])  # NaN is equal
        np.testing.assert_array_equal(a.ratios, b.ratios)
        np.testing.assert_array_equal(a.basis, b.basis)


def test_restoring_the_judge_after_every_step_changes_nothing():
    laws = eventful_run()

    straight = tell(laws, last=1300, noise=NOISE, dense=[(420, 470)])
    restored = tell(laws, last=1300, noise=NOISE, dense=[(420, 470)], restart_every=1)

    same(straight.judgements, restored.judgements)
    assert straight.judge.state() == restored.judge.state()
    assert straight.judge.verdicts("r", "a") == restored.judge.verdicts("r", "a")
    assert {change.condition for change in straight.transitions} >= {
        "attention",
        "forward",
        "learning_rate_jump",
        "numeric",
        "update",
    }


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_any_grouping_of_any_points_into_requests_gives_the_same_judgements(data, seed):
    random = np.random.default_rng(seed)
    all_series = [
        series(0, "learning_rate", "group 0", group=0, parameters=10),
        series(1, "activation.rms", "b", role="block", cadence=2),
        series(2, "update.own", "b", cadence=2),
        series(3, "update.own_mean", "b", cadence=2),
        series(4, "attention.max_logit", "b", cadence=4),
        series(5, "loss", ""),
    ]
    steps = np.cumsum(random.integers(1, 4, 150))
    values = np.exp(random.standard_normal((150, 6)) * random.choice([0.1, 1.5], (150, 1))).astype(np.float32)
    values[random.random(values.shape) < 0.02] = data.draw(st.sampled_from([0.0, np.nan, np.inf]))
    present = random.random(values.shape) < 0.9
    splits = data.draw(st.integers(1, 40))

    whole = tell_values(all_series, steps, values, present, every=2)
    split = tell_values(all_series, steps, values, present, every=2, restart_every=splits)

    same(whole.judgements, split.judgements)
    assert whole.judge.state() == split.judge.state()


def test_series_that_are_declared_early_or_late_are_judged_alike():
    laws = eventful_run()
    all_series, late = [one for one, _ in laws], 40
    steps = sampled_steps(800)
    values = np.stack([law(steps.astype(float)) for _, law in laws], axis=1).astype(np.float32)
    present = measured(all_series, steps)
    present[steps < 300, late:] = False
    early = tell_values(all_series, steps, values, present)

    judge = Judge(all_series[:late], mup=False, every=EVERY)
    first = steps < 300
    told = tell_values(all_series[:late], steps[first], values[first, :late], present[first, :late], judge=judge)
    judge.add_series(all_series[late:])
    rest = tell_values(all_series, steps[~first], values[~first], present[~first], judge=judge)

    assert judge.order == [one.id for one in all_series]
    assert repr([*told.transitions, *rest.transitions]) == repr(early.transitions)


def test_a_state_is_refused_by_a_judge_of_other_series():
    state = tell([(series(0, "loss", ""), constant(1.0))], last=50).judge.state()

    with pytest.raises(JudgeStateError, match="not the first of these"):
        Judge([series(9, "loss", "")], mup=False, every=EVERY, state=state)


@pytest.mark.parametrize("damage", [b"", b"IJ", b"XX" + bytes(30), bytes(64)])
def test_a_damaged_state_is_refused(damage):
    with pytest.raises(JudgeStateError):
        Judge([], mup=False, every=EVERY, state=damage)


@pytest.mark.parametrize("keep", [10, 200, 1500])
def test_a_torn_state_is_refused(keep):
    state = tell([(series(0, "activation.rms", "b", role="block"), constant(1.0))], last=50).judge.state()

    with pytest.raises(JudgeStateError):
        Judge([series(0, "activation.rms", "b", role="block")], mup=False, every=EVERY, state=state[:keep])


def test_a_state_of_another_version_is_refused():
    state = bytearray(tell([(series(0, "loss", ""), constant(1.0))], last=50).judge.state())
    state[2] += 1

    with pytest.raises(JudgeStateError, match="version"):
        Judge([series(0, "loss", "")], mup=False, every=EVERY, state=bytes(state))


def test_what_is_packed_is_unpacked_exactly():
    numbers = {"a": 0.1, "nan": float("nan"), "list": [[1, 2.5]], "none": None}
    arrays = {"x": np.arange(7, dtype=np.float32), "empty": np.empty(0, np.int64), "m": np.ones((2, 3), bool)}

    found, unpacked = packing.unpack(packing.pack(numbers, arrays))

    np.testing.assert_equal(found, numbers)
    for name, array in arrays.items():
        np.testing.assert_array_equal(unpacked[name], array)
        assert unpacked[name].dtype == array.dtype and unpacked[name].flags.writeable


def test_steps_are_judged_in_order_and_once():
    judge = Judge([series(0, "loss", "")], mup=False, every=EVERY)
    judge.judge(10, np.ones(1, np.float32), np.ones(1, bool))

    with pytest.raises(OutOfOrder, match="not after step 10"):
        judge.judge(10, np.ones(1, np.float32), np.ones(1, bool))


def test_a_resumed_attempt_starts_from_its_parents_baselines():
    laws = healthy_run(SHAPES["still"], warm_up_cosine(1e-3, warm_up=100, last=5000))
    parent = tell(laws, last=1000, noise=0.05).judge
    ids = {one.id: one.id + 500 for one, _ in laws}
    children = [(series_with_id(one, ids[one.id]), law) for one, law in laws]
    child = Judge([one for one, _ in reversed(children)], mup=False, every=EVERY)

    child.inherit(parent.state(), ids)

    steps = np.arange(1010, 1060, 10)
    wrong = with_law(children, constant(30.0), metric="update.own", block="blocks.2")
    values = np.stack([law(steps.astype(float)) for _, law in reversed(wrong)], axis=1).astype(np.float32)
    told = tell_values([one for one, _ in reversed(wrong)], steps, values, np.ones(values.shape, bool), judge=child)
    assert {change.step for change in told.fired()} == {1020}
    assert len(told.fired("update")) == 3


def series_with_id(one: JudgedSeries, number: int) -> JudgedSeries:
    return JudgedSeries(number, one.metric, one.kind, one.subject, one.index, one.bound, one.facts)
