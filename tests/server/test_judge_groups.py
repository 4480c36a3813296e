"""Several optimizers: each group's rate judges its own parameters, and no check costs another its verdict."""

import numpy as np
import pytest

from tests.server.judged_runs import Law, Told, series, tell, warm_up_cosine
from tests.server.test_judge_sick import MUON

LAST = 2000
MUON_RATE = warm_up_cosine(2e-2, warm_up=100, last=LAST)
ADAMW_RATE = warm_up_cosine(3e-4, warm_up=100, last=LAST)


def two_optimizers(*, muon_group: int, adamw_group: int) -> Told:
    """A healthy run of Muon for two matrices and AdamW for a gain."""
    muon = {**MUON, "group": muon_group}
    return tell(
        [
            (series(0, "learning_rate", "0", group=muon_group, parameters=900), MUON_RATE),
            (series(1, "learning_rate", "1.0", group=adamw_group, parameters=100), ADAMW_RATE),
            (series(2, "update.operator_norm", "a.weight", **muon), MUON_RATE),  # type: ignore[arg-type]
            (series(3, "update.operator_norm", "b.weight", **muon), MUON_RATE),  # type: ignore[arg-type]
            (series(4, "update.abs_max", "gain", group=adamw_group), ADAMW_RATE),
        ],
        last=LAST,
    )


def test_each_optimizers_rate_judges_its_own_updates():
    told = two_optimizers(muon_group=0, adamw_group=1000)

    assert told.fired() == []
    basis = {v.subject: v.basis for v in told.judge.verdicts("r", "a").members if v.condition == "spectral_update"}
    assert basis == {"a.weight": "target", "b.weight": "target", "gain": "baseline"}


def test_a_number_that_two_groups_bear_judges_nobody():
    told = two_optimizers(muon_group=0, adamw_group=0)

    assert told.fired() == []
    basis = {v.subject: v.basis for v in told.judge.verdicts("r", "a").members if v.condition == "spectral_update"}
    assert set(basis.values()) <= {"baseline", None}


def test_a_step_that_judges_a_muon_matrix_holds_the_other_values_under_their_ceilings():
    schedule: Law = lambda steps: np.where(steps < 1000, 1e-3, 4e-4)  # noqa: E731
    update: Law = lambda steps: np.where(steps < 3000, 1.0, 6.0)  # noqa: E731
    muon = {**MUON, "cadence": 10}
    own = [
        (series(0, "learning_rate", "group 0", group=0), schedule),
        (series(1, "update.own", "mlp"), update),
    ]
    matrix = (series(2, "update.operator_norm", "w", **muon), schedule)  # type: ignore[arg-type]

    alone, beside = tell(own, last=3100), tell([*own, matrix], last=3100)

    said = [[judgement.ratios[1] for judgement in told.judgements] for told in (alone, beside)]
    np.testing.assert_array_equal(said[0], said[1])
    assert [change.step for change in beside.fired("update")] == [3020]


CONSTANT: Law = lambda steps: np.full(steps.shape, 1e-3)  # noqa: E731
COSINE: Law = lambda steps: 1e-3 * (1 + np.cos(np.pi * np.minimum(steps / LAST, 1))) / 2  # noqa: E731
DIVIDED: Law = lambda steps: np.where(steps < 1200, 1e-3, 1e-4)  # noqa: E731
RAISED: Law = lambda steps: np.where(steps < 1200, 1e-3, 3e-2)  # noqa: E731
RAMPED: Law = lambda steps: 1e-3 * np.clip(1.05 ** ((steps - 1200) / 10), 1, 30)  # noqa: E731


def with_schedules_of_their_own(major: Law, minor: Law, *, steps: Law | None = None, restart_every: int | None = None):
    """A run of two groups; what their steps do follows their rates, but for the minor one where `steps` are given."""
    moves = minor if steps is None else steps
    laws = [
        (series(0, "learning_rate", "major", group=0, parameters=900), major),
        (series(1, "learning_rate", "minor", group=1, parameters=100), minor),
        (series(2, "update.abs_max", "a.weight", group=0), major),
        (series(3, "update.abs_max", "b.weight", group=1), moves),
        (series(4, "update.own", "b.weight"), moves),
    ]
    return tell(laws, last=LAST, noise=0.05, restart_every=restart_every)


@pytest.mark.parametrize(("major", "minor"), [(CONSTANT, COSINE), (COSINE, CONSTANT), (DIVIDED, CONSTANT)])
def test_what_a_groups_steps_do_follows_its_own_schedule(major, minor):
    told = with_schedules_of_their_own(major, minor)

    assert told.fired("spectral_update") == told.fired("update") == []
    assert not any(v.state == "drifting" for v in told.judge.verdicts("r", "a").members if v.kind == "parameter")


@pytest.mark.parametrize("minor", [RAISED, RAMPED])
def test_a_rate_that_leaves_the_others_by_mistake_is_not_followed(minor):
    told = with_schedules_of_their_own(COSINE, minor)

    assert {c.series for c in told.fired("spectral_update")} == {3}
    assert {c.series for c in told.fired("update")} == {4}


def test_steps_that_do_not_follow_the_rate_of_their_group_are_told():
    told = with_schedules_of_their_own(CONSTANT, COSINE, steps=CONSTANT)

    assert {c.series for c in told.fired("spectral_update")} == {3}


def test_what_is_known_of_own_rates_survives_restarts():
    whole = with_schedules_of_their_own(COSINE, RAISED)
    restarted = with_schedules_of_their_own(COSINE, RAISED, restart_every=7)

    assert [(c.step, c.series, c.state) for c in restarted.transitions] == [
        (c.step, c.series, c.state) for c in whole.transitions
    ]
