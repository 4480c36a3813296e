"""What broke, and what broke first: jumps, silence, vanished gradients, and the sentence that names the cause."""

from dataclasses import replace

import numpy as np
import pytest

from internist.schema import grid
from internist_server.judge.verdicts import JudgedSeries
from tests.server.judged_runs import EVERY, Law, Told, constant, series, tell, tell_values
from tests.server.test_judge_sick import while_wrong

FIRST = 400


def on_the_grid(laws: list[tuple[JudgedSeries, Law]], *, last: int, noise: float = 0.05) -> Told:
    """A run whose points lie as the client's: eight an octave until the regular distance of their class is shorter."""
    all_series = [one for one, _ in laws]
    classes = {EVERY, *(one.facts.cadence for one in all_series)}
    steps = np.array([step for step in range(last + 1) if any(grid.is_on_grid(step, regular) for regular in classes)])
    values = np.stack([law(steps.astype(np.float64)) for _, law in laws], axis=1)
    values *= np.exp(noise * np.random.default_rng(0).standard_normal(values.shape))
    present = np.array([[grid.is_on_grid(step, one.facts.cadence) for one in all_series] for step in steps.tolist()])
    return tell_values(all_series, steps, values.astype(np.float32), present)


def test_dependency_is_judged_from_step_32_on():
    spread = series(0, "activation.spread", "blocks.0")
    law: Law = lambda steps: np.where(steps < 36, 1.0, 0.0)  # noqa: E731

    told = on_the_grid([(spread, law)], last=60)

    judged = [said.step for said in told.judgements if said.basis[0]]
    assert judged[0] == 32
    (fired,) = told.fired()
    assert (fired.condition, fired.pending_step, fired.step) == ("dependency", 36, 40)


@pytest.mark.parametrize(("metric", "points"), [("activation.rms", 3), ("activation.spread", 2)])
def test_an_alert_waits_for_samples_wherever_they_lie(metric, points):
    one = series(0, metric, "blocks.0", role="block")

    (fired,) = on_the_grid([(one, while_wrong(6.0, 1100, 1e9))], last=2400).fired()

    seen = [step for step in range(fired.pending_step, fired.step + 1) if grid.is_on_grid(step, one.facts.cadence)]
    assert len(seen) == points


def test_samples_of_a_dense_stretch_open_an_alert_at_once_and_resolve_none_sooner():
    laws = [(series(0, "activation.rms", "blocks.0", role="block"), while_wrong(8.0, 700, 704))]

    told = tell(laws, last=1000, dense=[(700, 800)])

    assert [change.step for change in told.fired()] == [702]
    assert [change.step for change in told.resolved()] == [703 + 3 * EVERY]


def test_a_restart_whose_first_peak_was_under_a_warm_up_is_no_jump():
    def rate(steps):
        period = 0.1 + 0.45 * (1 + np.cos(np.pi * (steps % 150) / 150))
        return 0.02 * np.minimum(1, (steps + 1) / 40) * period

    assert tell([(series(0, "learning_rate", "0", group=0), rate)], last=600).fired() == []


def test_a_groups_rate_that_jumps_is_told_with_the_block_that_it_is_of():
    rates = [
        (
            series(n, "learning_rate", str(n), group=n, parameters=9),
            lambda s, n=n: 1e-3 * np.where((s < 700) | (n == 0), 1, 30),
        )
        for n in range(2)
    ]
    weights = [
        (series(2 + n, "weight.rms", f"blocks.{n}.w", group=n, block=f"blocks.{n}"), constant(1)) for n in (0, 1)
    ]

    (fired,) = tell([*rates, *weights], last=760).fired()

    assert fired.message == (
        "learning rate of group 1 (blocks.1): rose 30x between two samples at step 700, from 0.001 to 0.03"
    )


@pytest.mark.parametrize(("rate", "opens"), [(1.0, True), (1000.0, False)])
def test_a_weight_decay_that_jumps_is_an_alert_unless_its_learning_rate_jumps_with_it(rate, opens):
    leap = lambda to: lambda steps: np.where(steps < 500, 1e-3, 1e-3 * to)  # noqa: E731
    laws = [
        (series(0, "weight_decay", "hidden", group=0), leap(1000.0)),
        (series(1, "learning_rate", "hidden", group=0), leap(rate)),
    ]

    told = tell(laws, last=900)

    assert [change.step for change in told.fired("weight_decay_jump")] == [500] * opens
    assert [change.step for change in told.resolved("weight_decay_jump")] == [610] * opens


@pytest.mark.parametrize(
    ("metric", "well", "sick"), [("gradient.rms", 0.01, 0.0), ("update.unchanged", 0.01, 0.99), ("gradient.rms", 1, 0)]
)
def test_a_parameter_that_no_longer_learns_is_an_alert(metric, well, sick):
    law: Law = lambda steps: np.where(steps < 600, well, sick)  # noqa: E731

    (fired,) = tell([(series(0, metric, "blocks.0.w"), law)], last=700).fired()

    assert (fired.condition, fired.series) == ("learning", 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.85])
def test_a_number_format_in_which_many_entries_do_not_move_is_well_where_it_is_so_from_the_start(share):
    assert tell([(series(0, "update.unchanged", "blocks.0.w"), constant(share))], last=2000, noise=0.01).fired() == []


def test_gradients_that_all_become_zero_are_no_common_decay():
    law: Law = lambda steps: np.where(steps < 600, 0.01, 0.0)  # noqa: E731
    laws = [(series(n, "gradient.rms", f"blocks.{n}.w", block=f"blocks.{n}"), law) for n in range(6)]

    fired = tell(laws, last=700).fired()

    assert [change.series for change in fired] == [5, 4, 3, 2, 1, 0]  # as a backward pass meets them


def test_a_series_that_stops_is_no_data_and_one_alert_that_names_the_first():
    names = ("activation.rms", "update.own")
    all_series = [series(2 * n + k, names[k], f"blocks.{n}", role="block") for n in range(3) for k in range(2)]
    steps = np.arange(0, 2000, EVERY)
    present = np.ones((steps.size, 6), bool)
    present[(steps >= 1000) & (steps < 1500), 2:] = False

    told = tell_values(all_series, steps, np.ones((steps.size, 6), np.float32), present)

    (fired,) = told.fired()
    assert (fired.condition, fired.severity) == ("no_data", "warning")
    assert fired.message == "blocks.1: no data of activation.rms since step 990; 1 more modules or parameters with it"
    assert 1050 <= fired.step <= 1100
    assert [change.step for change in told.resolved()] == [1500]


def test_a_nan_names_the_first_module_in_forward_order_and_opens_one_alert():
    names = ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.0.mlp", "blocks.0", "head", ""]
    laws = [
        (replace(one, facts=replace(one.facts, order=place)), while_wrong(np.nan, FIRST, 1e9))
        for one, place in zip(
            (series(n, "activation.rms", name) for n, name in enumerate(names)), (3, 4, 2, 1, 5, 0), strict=True
        )
    ]
    laws.append((series(6, "gradient.rms", "blocks.0.mlp.fc1.weight"), while_wrong(np.nan, FIRST, 1e9)))
    laws.append((series(7, "loss", ""), while_wrong(np.nan, FIRST, 1e9)))

    told = tell(laws, last=500)

    (fired,) = told.fired()
    assert fired.message.startswith("blocks.0.mlp.fc1: activation.rms is NaN, since step 400; 7 more")
    assert told.judge.summary().sentence.startswith("numeric - blocks.0.mlp.fc1: activation.rms is NaN since step 400")


def test_the_sentence_names_the_first_cause_and_not_what_is_farthest_out():
    laws = [
        (
            series(n, "activation.rms", f"blocks.{n}", role="block", block=f"blocks.{n}"),
            while_wrong(8.0 * 4**n, 600, 1e9),
        )
        for n in range(3)
    ]

    assert tell(laws, last=700).judge.summary().sentence.startswith("forward - blocks.0 output is 8.0x its baseline")


def test_a_verdict_says_where_its_band_comes_from_and_what_to_try():
    laws = [
        (series(0, "activation.rms", "blocks.0", role="block"), while_wrong(8.0, 600, 1e9)),
        (series(1, "attention.max_logit", "blocks.0.attn"), constant(150.0)),
        (series(2, "update.own", "blocks.0"), constant(1.0)),
    ]

    verdicts = {one.metric: one for one in tell(laws, last=700).judge.verdicts("r", "a").members if one.band_high}

    assert verdicts["activation.rms"].source == "its own values before step 600"
    assert verdicts["activation.rms"].advice == "its input scale, then the growth of its weights"
    assert "arXiv:2507.20534" in verdicts["attention.max_logit"].source
    assert verdicts["update.own"].advice == ""


def test_nothing_is_foretold_of_a_run_that_is_over():
    one = series(0, "optimizer.audit", "w")
    judge = tell([(one, lambda steps: 1e-6 * (steps + 1) ** 1.1)], last=450).judge

    reasons = [judge.verdicts("r", "a", is_over=is_over).members[0].reason for is_over in (False, True)]

    assert ["leaves its band near" in reason for reason in reasons] == [True, False]
    assert judge.verdicts("r", "a", is_over=True).members[0].crossing_step is None


@pytest.mark.parametrize(("factor", "opens"), [(1.4, True), (0.0, True), (1.05, False)])
def test_a_weight_that_something_else_than_its_steps_has_moved_is_named_at_once(factor, opens):
    laws = []
    for n in range(3):
        leap = lambda s, n=n: (1 + 1e-4 * s) * np.where((s < FIRST) | (n != 1), 1, factor)  # noqa: E731
        laws.append((series(2 * n, "weight.rms", f"blocks.{n}.w"), leap))
        laws.append((series(2 * n + 1, "update.rms", f"blocks.{n}.w"), constant(1e-4)))

    told = tell(laws, last=700)

    assert [(change.step, change.series) for change in told.fired("weight_jump")] == [(FIRST, 2)] * opens
    assert len(told.resolved("weight_jump")) == opens


@pytest.mark.parametrize(
    ("heads", "before", "opens"),
    [((4.0, 4.0), 8.0, True), ((4.0, 1.2), 8.0, False), ((2.0, 2.0), 8.0, False), ((4.0, 4.0), 0.2, False)],
)
def test_logits_that_all_rise_by_a_multiple_between_two_samples_are_told_at_once(heads, before, opens):
    """As where attention's scale is forgotten: far under what warns, and no learning does it."""
    laws = [
        (
            series(head, "attention.max_logit", "blocks.1.attn", index=head),
            lambda s, to=to: (before + 0.1 * np.sin(s)) * np.where(s < FIRST, 1, to),
        )
        for head, to in enumerate(heads)
    ]

    told = tell(laws, last=700)

    assert [(change.step, change.severity) for change in told.fired("logit_jump")] == [(FIRST, "warning")] * opens
    assert len(told.resolved("logit_jump")) == opens
    assert all("blocks.1.attn [" in change.message for change in told.fired("logit_jump"))
