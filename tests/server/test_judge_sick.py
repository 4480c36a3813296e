"""Sick runs: what is wrong is found, soon, in the right place, and it ends when it is mended."""

import numpy as np
import pytest
from numpy.typing import NDArray

from internist_server.judge.verdicts import Judge, JudgedSeries
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
from tests.server.test_judge_healthy import NOISE, SCHEDULES, SHAPES, healthy_run

Steps = NDArray[np.float64]


def with_law(laws: list[tuple[JudgedSeries, Law]], change: Law, **which: object) -> list[tuple[JudgedSeries, Law]]:
    """The same run with the law of these series multiplied by `change`."""

    def is_meant(one: JudgedSeries) -> bool:
        return all(value in (getattr(one, name, None), getattr(one.facts, name, None)) for name, value in which.items())

    return [(one, (lambda steps, law=law: law(steps) * change(steps)) if is_meant(one) else law) for one, law in laws]


def while_wrong(factor: float, first: int = 400, until: int = 460) -> Law:
    return lambda steps: np.where((steps >= first) & (steps < until), factor, 1.0)


def rising(one: JudgedSeries, law: Law, **run: object) -> list:  # type: ignore[type-arg]
    return tell([(one, law)], **run).fired()  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [10.0, 30.0])
@pytest.mark.parametrize("dense", [[], [(420, 520)]])
@pytest.mark.parametrize("seed", range(3))
def test_a_learning_rate_mistake_in_one_block_is_found_by_the_third_point_and_resolves_soon_after_the_mend(
    factor, dense, seed
):
    laws = healthy_run(SHAPES["growing like the square root of steps"], SCHEDULES["warm-up and cosine"])
    laws = with_law(laws, while_wrong(factor), metric="update.own", block="blocks.2")
    laws = with_law(laws, while_wrong(factor), metric="update.own_mean", block="blocks.2")

    told = tell(laws, noise=NOISE, seed=seed, dense=dense)

    fired, resolved = told.fired(), told.resolved()
    assert {laws[change.series][0].facts.block for change in fired} == {"blocks.2"}
    assert {change.condition for change in fired} == {"update"}
    assert len(fired) == 3
    assert max(change.step for change in fired) <= 420
    assert len(resolved) == 3
    assert all(460 + 2 * EVERY <= change.step <= 460 + 5 * EVERY for change in resolved)
    assert all(change.worst_ratio > 0.6 * factor for change in resolved)
    assert told.judge.summary().state == "ok"


def test_the_blamed_block_comes_first_on_the_board_while_the_mistake_lasts():
    laws = healthy_run(SHAPES["still"], SCHEDULES["constant"])
    laws = with_law(laws, while_wrong(30.0, until=10_000), metric="update.own", block="blocks.2")
    laws = with_law(laws, while_wrong(80.0, until=10_000), metric="update.feature", block="blocks.4")

    told = tell(laws, last=450, noise=0.05)

    board = told.judge.verdicts("run", "attempt")
    assert board.state == "violated"
    assert [verdict.block for verdict in board.members[:3]] == ["blocks.2"] * 3
    assert board.blocks[0].name == "blocks.2"
    assert board.sentence.startswith("update - blocks.2 moved 3")
    assert "its baseline since step 400. Try: its learning rate." in board.sentence


@pytest.mark.parametrize("doubling", [50, 100, 200])
def test_growth_that_doubles_again_and_again_is_found_before_it_is_tenfold_of_its_limit(doubling):
    law: Law = lambda steps: np.exp2(np.maximum(steps - 1000, 0) / doubling)  # noqa: E731

    fired = rising(series(0, "activation.rms", "blocks.0", role="block"), law, last=3000, noise=0.05)

    assert [change.condition for change in fired] == ["forward"]
    assert fired[0].step <= 1000 + 2 * doubling + 4 * EVERY + 0.5 * doubling


def test_growth_that_doubles_from_the_first_step_on_is_found_too():
    law: Law = lambda steps: np.exp2(steps / 200)  # noqa: E731

    fired = rising(series(0, "activation.rms", "blocks.0", role="block"), law, last=3000, noise=0.05)

    assert fired and fired[0].step <= 1500


@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_a_layer_that_stops_learning_is_found(floor):
    law: Law = lambda steps: np.where(steps < 600, 0.1, 0.1 * floor)  # noqa: E731

    (fired,) = rising(series(0, "update.own", "blocks.0.mlp"), law, last=700)

    assert (fired.condition, fired.cause, fired.step) == ("update", "own", 610)
    assert fired.ratio == pytest.approx(1 / floor, rel=1e-3) if floor else np.isinf(fired.ratio)


def test_outputs_that_collapse_to_one_are_a_violation_and_small_ones_are_not():
    collapse: Law = lambda steps: np.where(steps < 6000, 1.0, 0.1)  # noqa: E731

    spread = rising(series(0, "activation.spread", "blocks.0"), collapse, last=7000)
    rms = rising(series(0, "activation.rms", "blocks.0", role="block"), collapse, last=7000)

    assert [change.step for change in spread] == [6100]
    assert rms == []


def test_nan_and_infinities_fire_at_the_first_point_and_resolve_after_ten_finite_ones():
    law: Law = lambda steps: np.where(steps == 500, np.nan, np.where(steps == 700, np.inf, 1.0))  # noqa: E731

    told = tell([(series(0, "gradient.rms", "w"), law)])

    assert [(c.state, c.step, c.rule, c.ratio) for c in told.transitions] == [
        ("firing", 500, "not_finite", np.inf),
        ("resolved", 600, "not_finite", 1.0),
        ("firing", 700, "not_finite", np.inf),
        ("resolved", 800, "not_finite", 1.0),
    ]
    assert told.transitions[0].message == "w: gradient.rms is NaN, since step 500"
    assert "infinite" in told.transitions[2].message


@pytest.mark.parametrize(
    ("metric", "subject", "value", "said"),
    [
        ("loss", "", np.nan, "model: loss is NaN"),
        ("activation.nonfinite", "mlp", 12, "mlp: 12 entries of its output are NaN or infinite"),
        ("learning_rate", "group 0", np.nan, "group 0: learning_rate is NaN"),
    ],
)
def test_whatever_is_not_finite_violates(metric, subject, value, said):
    law: Law = lambda steps: np.where(steps == 500, value, 0)  # noqa: E731

    (fired,) = tell([(series(0, metric, subject), law)]).fired("numeric")

    assert (fired.step, fired.message) == (500, f"{said}, since step 500")


def whole_model(*, from_place: int, at: int = 500, kinds: int = 3) -> list[tuple[JudgedSeries, Law]]:
    """A model that turns NaN from one of its modules on: outputs, the blocks and the model around them, gradients and
    loss, declared in an order that says nothing."""
    names = ["", "blocks.0", "blocks.0.attn", "blocks.0.mlp", "blocks.1", "blocks.1.attn", "blocks.1.mlp", "head"]
    bad: Law = lambda steps: np.where(steps < at, 0.5, np.nan)  # noqa: E731
    count: Law = lambda steps: np.where(steps < at, 0, 7)  # noqa: E731
    first = names[from_place]
    laws: list[tuple[JudgedSeries, Law]] = [(series(90, "loss", ""), bad)]
    for order, name in enumerate(names):
        holds_it = first.startswith(f"{name}.") or not name
        is_sick = order >= from_place or holds_it
        one = series(order, "activation.nonfinite", name)
        laws.append((one, count if is_sick else constant(0)))
        laws.append((series(50 + order, "gradient.rms", f"{name}.weight"), bad))
        laws.append((series(30 + order, "update.own", name), bad))  # a NaN in one gradient is one in every update
    return laws


@pytest.mark.parametrize(
    ("place", "first"), [(2, "blocks.0.attn"), (3, "blocks.0.mlp"), (6, "blocks.1.mlp"), (7, "head")]
)
def test_of_a_whole_model_that_turns_nan_the_first_module_is_named_in_one_alert(place, first):
    laws = whole_model(from_place=place)

    told = tell(laws, last=600)

    (fired,) = told.fired()
    assert told.transitions == [fired]
    assert fired.message.startswith(f"{first}: 7 entries of its output are NaN or infinite, since step 500; ")
    board = told.judge.verdicts("r", "a")
    assert board.sentence.startswith(f"numeric - {first}: 7 entries of its output are NaN or infinite since step 500.")
    assert [v.subject for v in board.members if v.state == "violated"][-1] == ""


def test_a_nan_that_spreads_to_all_weights_at_the_next_step_leaves_the_first_module_named():
    first, rest = whole_model(from_place=6, at=500), whole_model(from_place=1, at=510)
    earlier = dict(first)
    laws = [(one, lambda s, a=earlier[one], b=law: np.where(s < 510, a(s), b(s))) for one, law in rest]

    told = tell(laws, last=600)

    assert [change.message.partition(":")[0] for change in told.transitions] == ["blocks.1.mlp"]
    assert told.judge.summary().sentence.startswith("numeric - blocks.1.mlp: ")


def test_a_nan_that_comes_and_goes_is_one_incident():
    law: Law = lambda steps: np.where((steps >= 300) & (steps < 900) & (steps % 20 == 0), np.nan, 1.0)  # noqa: E731

    told = tell([(series(0, "loss", ""), law), (series(1, "gradient.rms", "w"), law)], last=1200)

    assert [change.state for change in told.transitions] == ["firing", "resolved"]


@pytest.mark.parametrize(
    ("subject", "said"), [("3", "group 3"), ("1.0", "group 0 of optimizer 1"), ("decay", "group decay")]
)
def test_a_group_is_said_by_its_name(subject, said):
    laws = [(series(0, "learning_rate", subject, group=0), lambda s: 1e-3 * np.where(s < 700, 1, 10))]

    (fired,) = tell(laws, last=720).fired()

    assert fired.message == f"learning rate of {said}: rose 10x between two samples at step 700, from 0.001 to 0.01"


@pytest.mark.parametrize("metric", ["monitor.overhead_ms", "monitor.coverage", "my.own_scalar", "update.relative_rms"])
def test_what_the_monitor_costs_logged_scalars_and_quotients_of_zero_are_not_judged(metric):
    assert rising(series(0, metric, "x"), constant(np.nan)) == []


def test_infinite_gradients_of_a_skipped_step_are_the_scalers_ordinary_work():
    all_series = [series(0, "gradient.rms", "w"), series(1, "activation.rms", "mlp")]
    judge = Judge(all_series, mup=False, every=EVERY)
    values, present = np.array([np.inf, np.nan], np.float32), np.array([True, True])

    said = judge.judge(0, values, present, skipped=True)

    assert [change.series for change in said.transitions] == [1]


def test_logits_over_a_hundred_warn_and_over_a_thousand_are_critical():
    law: Law = lambda steps: np.where(steps < 500, 20.0, np.where(steps < 1000, 150.0, 1500.0))  # noqa: E731

    told = rising(series(0, "attention.max_logit", "attn", index=3), law, last=1500)
    fired = [change for change in told if change.rule == "max_logit_high"]

    assert [(c.step, c.severity, c.rule) for c in fired] == [
        (600, "warning", "max_logit_high"),
        (1100, "critical", "max_logit_high"),
    ]
    assert fired[0].pending_step == fired[1].pending_step == 500
    assert (fired[0].basis, fired[0].band_high, fired[0].ratio) == ("target", pytest.approx(100), pytest.approx(1.5))
    assert "150, over 100" in fired[0].message


def test_an_expert_that_gets_nearly_all_tokens_warns_and_an_even_share_is_well():
    law: Law = lambda steps: np.where(steps < 500, 0.25, 0.97)  # noqa: E731

    fired = rising(series(0, "router.load", "blocks.0.mlp.gate", index=3), law, last=1500)

    assert [(c.severity, c.condition) for c in fired] == [("warning", "experts")]
    assert "blocks.0.mlp.gate [3]" in fired[0].message and "0.97, over 0.9" in fired[0].message


def test_routers_that_all_become_sure_of_one_expert_warn_and_those_that_learn_to_choose_are_well():
    def collapses(steps: Steps) -> Steps:
        return 0.8 * np.where(steps < 4000, 1.0, np.maximum(np.exp(-(steps - 4000) / 150), 0.02))

    def learns(steps: Steps) -> Steps:
        return 0.3 + 0.69 * np.exp(-steps / 700)

    routers = [series(n, "router.entropy", f"blocks.{n}.mlp.gate", block=f"blocks.{n}") for n in range(4)]
    fired = tell([(router, collapses) for router in routers], last=5500).fired()
    assert [(c.severity, c.condition) for c in fired] == [("warning", "experts")] * 4
    assert tell([(router, learns) for router in routers], last=5500).fired() == []


def test_logits_under_a_hundred_are_well_however_much_they_grow():
    assert rising(series(0, "attention.max_logit", "attn"), lambda steps: 0.1 + steps / 25, last=2000) == []


def test_a_logit_that_is_negative_everywhere_is_well():
    told = tell([(series(0, "attention.max_logit", "attn"), constant(-3.0))])

    assert told.transitions == []
    assert told.judge.verdicts("r", "a").members[0].state == "ok"


def test_a_rise_of_the_run_wide_learning_rate_is_a_condition_of_its_own():
    laws = healthy_run(SHAPES["still"], lambda steps: 1e-3 * np.where(steps < 705, 1, 10))

    told = tell(laws, noise=0.05)

    (fired,) = told.fired()
    assert (fired.condition, fired.cause, fired.step, fired.severity) == (
        "learning_rate_jump",
        "learning_rate",
        710,
        "critical",
    )
    assert fired.ratio == pytest.approx(10)
    (resolved,) = told.resolved()
    assert 800 < resolved.step <= 830


def test_a_step_decay_of_the_run_wide_learning_rate_opens_nothing():
    laws = healthy_run(SHAPES["still"], lambda steps: 1e-3 * np.where(steps < 705, 1, 0.1))

    assert tell(laws, noise=0.05).fired() == []


def test_a_learning_rate_that_jumps_back_resolves_at_once():
    laws = [(series(0, "learning_rate", "group 0", group=0), lambda s: 1e-3 * np.where((s >= 700) & (s < 720), 9, 1))]

    told = tell(laws)

    assert [(c.state, c.step) for c in told.transitions] == [("firing", 700), ("resolved", 720)]


def test_a_schedule_that_warms_up_and_decays_never_jumps():
    laws = [(series(0, "learning_rate", "group 0", group=0), warm_up_cosine(1e-3, warm_up=100, last=2000))]

    assert tell(laws).transitions == []


def test_a_run_that_is_wrong_from_its_first_step_is_caught_by_the_sanity_band():
    laws = [
        (series(0, "activation.rms", "mlp"), constant(1.0)),
        (series(1, "update.own", "mlp"), constant(0.9)),
        (series(2, "update.own_mean", "mlp"), constant(0.45)),
    ]

    (fired,) = tell(laws, last=100).fired()

    assert (fired.series, fired.basis, fired.step, fired.severity) == (1, "sanity", 20, "critical")
    assert fired.ratio == pytest.approx(1.5, rel=1e-3)
    assert "45% of itself in one step" in fired.message


def test_nothing_is_too_small_while_the_learning_rate_is_almost_zero():
    schedule: Law = lambda steps: np.where(steps < 600, 1e-3, 1e-6)  # noqa: E731
    update: Law = lambda steps: np.where(steps < 600, 1.0, 0.0)  # noqa: E731

    told = tell(
        [(series(0, "learning_rate", "group 0", group=0), schedule), (series(1, "update.own", "mlp"), update)], last=900
    )

    assert told.fired("update") == []


def test_unscaled_updates_may_not_outgrow_the_largest_baseline_behind_a_fallen_learning_rate():
    schedule: Law = lambda steps: np.where(steps < 1000, 1e-3, 4e-4)  # noqa: E731
    update: Law = lambda steps: np.where(steps < 1000, 1.0, np.where(steps < 3000, 1.0, 6.0))  # noqa: E731

    told = tell(
        [(series(0, "learning_rate", "group 0", group=0), schedule), (series(1, "update.own", "mlp"), update)],
        last=3100,
    )

    (fired,) = told.fired("update")
    assert fired.step == 3020


def test_a_firing_series_that_is_no_longer_measured_stays_violated_and_says_so():
    all_series = [series(0, "activation.rms", "blocks.0", role="block"), series(1, "activation.rms", "b", role="block")]
    steps = sampled_steps(1000)
    values = np.ones((steps.size, 2), np.float32)
    values[steps >= 500, 0] = 50
    present = measured(all_series, steps)
    present[steps > 540, 0] = False

    told = tell_values(all_series, steps, values, present)

    worst = told.judge.verdicts("r", "a").members[0]
    assert (worst.state, worst.series) == ("violated", 0)
    assert worst.reason == "50x its baseline; no data since step 540"
    assert told.resolved() == []


def test_a_series_that_is_well_and_no_longer_measured_is_not_measured():
    all_series = [series(0, "activation.rms", "blocks.0", role="block"), series(1, "activation.rms", "b", role="block")]
    steps = sampled_steps(1000)
    present = measured(all_series, steps)
    present[steps > 540, 0] = False

    told = tell_values(all_series, steps, np.ones((steps.size, 2), np.float32), present)

    states = {v.series: v for v in told.judge.verdicts("r", "a").members if v.condition == "forward"}
    assert (states[0].state, states[0].reason) == ("not measured", "no data since step 540")
    assert states[1].state == "ok"


MUON: dict[str, object] = {
    "group": 0,
    "fan_in": 256,
    "fan_out": 1024,
    "update_scale": 2.0,
    "update_band": (0.7, 1.13),
    "cadence": 100,
}


@pytest.mark.parametrize(
    ("times", "severity"),
    [(0.8, None), (1.0, None), (1.13, None), (1.3, "warning"), (2.0, "critical"), (0.3, "critical")],
)
def test_a_muon_update_is_held_to_what_the_optimizer_promises(times, severity):
    schedule = warm_up_cosine(1e-2, warm_up=100, last=2000)
    laws = [
        (series(0, "learning_rate", "group 0", group=0), schedule),
        (series(1, "update.operator_norm", "w", **MUON), lambda s: times * schedule(s)),  # type: ignore[arg-type]
    ]

    fired = tell(laws, last=600).fired()

    assert [change.severity for change in fired] == ([severity] if severity else [])
    assert all(change.basis == "target" for change in fired)


def test_muons_band_allows_for_decoupled_weight_decay():
    laws = [
        (series(0, "learning_rate", "group 0", group=0), constant(1e-2)),
        (series(1, "weight_decay", "group 0", group=0), constant(0.1)),
        (series(2, "weight.operator_norm", "w", cadence=100), constant(5.0)),
        (series(3, "update.operator_norm", "w", **MUON), constant(1.5e-2)),  # type: ignore[arg-type]
    ]

    assert tell(laws, last=600).fired() == []
    assert [c.severity for c in tell([laws[0], laws[3]], last=600).fired()] == ["warning"]


def test_targets_for_mup_are_judged_only_where_the_run_declares_it():
    laws = [(series(0, "weight.operator_norm", "w", cadence=100), constant(6.0))]

    assert tell(laws).fired() == []
    assert [(c.condition, c.severity, c.basis) for c in tell(laws, mup=True).fired()] == [
        ("spectral_weight", "critical", "target")
    ]


def test_a_skipped_step_neither_opens_nor_ends_an_alert_on_gradients():
    judge = Judge([series(0, "gradient.rms", "w")], mup=False, every=EVERY)
    infinite, present = np.array([np.inf], np.float32), np.array([True])

    said = [judge.judge(step, infinite, present, skipped=step != 10) for step in (0, 10, 20)]

    assert [[change.state for change in one.transitions] for one in said] == [[], ["firing"], []]
