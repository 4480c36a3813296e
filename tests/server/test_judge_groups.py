"""Several optimizers: each group's rate judges its own parameters, and no check costs another its verdict."""

import numpy as np

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
