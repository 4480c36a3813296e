"""Healthy runs of many shapes: none opens an alert."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from internist_server.judge.verdicts import JudgedSeries
from tests.server.judged_runs import Law, constant, series, tell, warm_up_cosine

BLOCKS = 6
LAST = 2000
NOISE = 0.17
"""Standard deviation of the logarithm; that of a factor spread evenly over +-30 %."""
SCHEDULES: dict[str, Law] = {
    "constant": constant(1e-3),
    "warm-up and cosine": warm_up_cosine(1e-3, warm_up=200, last=LAST),
    "long warm-up": warm_up_cosine(1e-3, warm_up=800, last=LAST),
    "from zero to zero": lambda steps: 1e-3 * np.minimum(steps / 100, 1) * np.clip((LAST - steps) / 1000, 0, 1),
}
Shape = Callable[[NDArray[np.float64]], NDArray[np.float64]]
SHAPES: dict[str, Shape] = {
    "still": lambda steps: 1.0 + 0 * steps,
    "growing like the square root of steps": lambda steps: 1.0 + 0.02 * np.sqrt(steps),
    "growing from nothing with exponent 0.6": lambda steps: 0.1 * (steps + 0.01) ** 0.6,
    "zero at the start, growing linearly": lambda steps: 0.01 * steps,
    "zero at the start, growing linearly, then still": lambda steps: 0.01 * np.minimum(steps, 500),
    "two layers growing together, then still": lambda steps: 1e-4 * np.minimum(steps, 300) ** 2,
    "shrinking slowly": lambda steps: (steps + 10) ** -0.3,
}


def healthy_run(shape: Shape, schedule: Law) -> list[tuple[JudgedSeries, Law]]:
    """A small transformer whose outputs and weights have this shape, and whose updates follow the schedule."""
    laws: list[tuple[JudgedSeries, Law]] = [
        (series(0, "learning_rate", "group 0", group=0, parameters=900), schedule),
        (series(1, "learning_rate", "group 1", group=1, parameters=100), lambda steps: 3 * schedule(steps)),
    ]

    def add(metric: str, subject: str, law: Law, **facts: object) -> None:
        laws.append((series(len(laws), metric, subject, group=0, **facts), law))  # type: ignore[arg-type]

    for number in range(BLOCKS):
        block = f"blocks.{number}"
        for subject in (block, f"{block}.attn", f"{block}.mlp"):
            facts: dict[str, object] = {"block": block, "role": "block" if subject == block else "linear"}
            add("activation.rms", subject, shape, **facts)
            add("activation.rms_max", subject, lambda steps: 3 * shape(steps), input_normalized=True, **facts)
            add("activation.rms_q99", subject, lambda steps: 2 * shape(steps), **facts)
            add("activation.nonfinite", subject, constant(0), **facts)
            add("activation.spread", subject, shape, **facts)
            add("update.own", subject, lambda steps: 10 * schedule(steps) * shape(steps), **facts)
            add("update.own_mean", subject, lambda steps: 5 * schedule(steps) * shape(steps), **facts)
            add("update.feature", subject, lambda steps: 30 * schedule(steps) * shape(steps), **facts)
            add("weight.operator_norm", subject, shape, **facts)
            add("update.operator_norm", subject, lambda steps: schedule(steps), **facts)
            add("update.abs_max", subject, lambda steps: schedule(steps), **facts)
        for head in range(4):
            add(
                "attention.max_logit",
                f"{block}.attn",
                lambda steps: 2 + np.minimum(steps, LAST) / 200,
                index=head,
                block=block,
            )
    add("output.log_z", "head", constant(4.0))
    add("loss", "", lambda steps: 3 + 4 / np.sqrt(steps + 1))
    return laws


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_healthy_run_opens_no_alert(shape, schedule):
    for seed in range(3):
        told = tell(healthy_run(SHAPES[shape], SCHEDULES[schedule]), last=LAST, noise=NOISE, seed=seed)

        assert [change.message for change in told.fired()] == []


def test_a_healthy_run_that_stands_still_has_all_its_conditions_held_at_the_end():
    laws = healthy_run(SHAPES["still"], SCHEDULES["warm-up and cosine"])

    told = tell(laws, last=20_000, noise=0.05)

    summary = told.judge.summary()
    assert (summary.state, summary.violated, summary.drifting) == ("ok", 0, 0)
    assert summary.sentence == "All six conditions hold (2 by target, 4 by own baseline)."


@pytest.mark.parametrize("seed", range(5))
def test_zero_initialised_layers_do_not_alarm_in_the_dense_first_steps(seed):
    laws = [
        (series(0, "activation.rms", "proj"), lambda steps: 1e-3 * steps),
        (series(1, "update.own", "proj"), constant(2e-3)),
        (series(2, "update.own_mean", "proj"), constant(1e-3)),
    ]

    told = tell(laws, last=300, noise=NOISE, seed=seed)

    assert told.transitions != []
    assert told.fired() == []


def test_a_run_that_is_watched_from_a_late_step_gets_its_baselines_as_soon_as_one_from_the_start():
    laws = healthy_run(SHAPES["still"], SCHEDULES["constant"])

    told = tell(laws, last=400, noise=NOISE, origin=100_000)

    update = next(card for card in told.judge.verdicts("run", "attempt").cards if card.name == "update")
    assert (update.state, update.basis) == ("ok", "baseline")


def test_points_of_a_dense_stretch_do_not_displace_the_regular_ones_in_a_baseline():
    def bad(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where((steps >= 400) & (steps < 460), 30.0, 1.0)

    laws = [(series(0, "activation.rms", "blocks.0", role="block"), bad)]

    told = tell(laws, dense=[(420, 480)])

    assert {change.pending_step for change in told.transitions} == {400}


def test_noise_of_the_size_of_rounding_is_no_baseline():
    def noise(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(steps > 1000, 0.0, 10.0 ** (-11 + np.sin(steps)))

    told = tell([(series(0, "update.abs_max", "conv.bias"), noise)])

    assert told.fired() == []
    assert {v.reason for v in told.judge.verdicts("r", "a").members if v.condition != "numeric"} == {
        "its baseline is zero"
    }


@pytest.mark.parametrize(("then", "is_told"), [(0.004, False), (0.0, True)])
def test_where_the_rate_falls_a_step_may_fall_further_for_a_while_but_not_to_nothing(then, is_told):
    """A layer that swung about its minimum has smaller gradients then, and Adam remembers the larger ones."""
    rate = lambda steps: np.where(steps < 1000, 1e-3, 1e-4)  # noqa: E731
    own = lambda steps: np.where(steps < 1000, 1.0, then)  # noqa: E731
    laws = [
        (series(0, "learning_rate", "group 0", group=0, parameters=900), rate),
        (series(1, "update.own", "blocks.0.ln1", block="blocks.0", group=0), own),
    ]

    fired = tell(laws, last=1400, noise=NOISE).fired("update")

    assert bool(fired) == is_told
