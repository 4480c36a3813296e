import numpy as np
import pytest

from internist.schema.wire import Facts as SeriesFacts
from internist_server.judge import facts
from internist_server.judge.series import JudgedSeries
from internist_server.judge.verdicts import Judge


def one(number, metric, subject, role, block=None, kind="module", **shape):
    known = SeriesFacts(role=role, block=block, order=number, cadence=10, **shape)
    return JudgedSeries(number, metric, kind, subject, None, "exact", known)


BLOCKS = [f"blocks.{place}" for place in range(4)]
SERIES = [
    *(one(1 + place, "activation.rms", name, "block", name) for place, name in enumerate(BLOCKS)),
    *(one(11 + place, "update.feature_mean", name, "block", name) for place, name in enumerate(BLOCKS)),
    *(
        one(21 + place, "weight.operator_norm", f"{name}.fc.weight", "linear", name, "parameter")
        for place, name in enumerate(BLOCKS)
    ),
    one(31, "activation.rms", "head", "head"),
]
WELL = np.array([1.0, 1.2, 1.4, 1.6, *[0.1] * 4, 1.1, 1.5, 2.0, 2.9, 0.9], np.float32)


def judged(values, *, mup=False):
    """A judge after its first step, and what it said of that."""
    judge = Judge(SERIES, mup=mup, every=10)
    said = judge.judge(0, np.asarray(values, np.float32), np.ones(len(SERIES), bool))
    return judge, [t for t in said.transitions if t.condition == "first_step"]


def changed(column, value):
    values = WELL.copy()
    values[column] = value
    return values


def test_a_first_step_that_is_well_says_nothing():
    assert judged(WELL)[1] == [] and judged(WELL, mup=True)[1] == []


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (9, 1.1 * facts.WEIGHT, "blocks.1.fc.weight: R(W) at the start is 11, over 10 of a standard parametrisation"),
        (12, 9.0, "head: RMS of the logits at the start is 9, over 3 of any parametrisation"),
        (
            3,
            30.0,
            "blocks.3: growth of the residual stream over 4 blocks at the start is 30, over 4"
            " of a standard parametrisation",
        ),
        (
            5,
            2.4,
            "blocks.1: share of itself by which the first step moved its output is 2, over 1 of any parametrisation",
        ),
    ],
)
def test_what_is_out_of_proportion_from_the_start_warns_at_the_first_step(column, value, said):
    judge, (found,) = judged(changed(column, value))

    assert found.message == f"{said}, at step 0"
    assert (found.state, found.severity, found.condition) == ("firing", "warning", "first_step")
    summary = judge.summary()
    assert summary.state == "drifting" and said in summary.sentence


def test_a_matrix_that_reads_many_features_and_writes_few_is_held_to_what_is_customary_of_its_shape():
    narrow = one(1, "weight.operator_norm", "last.weight", "linear", None, "parameter", fan_in=1024, fan_out=1)
    of_torch = (1 + 1024**0.5) / 3**0.5

    def said(value):
        judge = Judge([narrow], mup=False, every=10)
        return judge.judge(0, np.array([value], np.float32), np.ones(1, bool)).transitions

    assert said(of_torch) == [] and said(6**0.5 * of_torch) == []
    assert [t.condition for t in said(10 * of_torch)] == ["first_step"]


def test_equal_spectral_norms_have_the_tighter_bound_and_declared_ones_a_target_instead():
    values = changed(slice(8, 12), 1.2 * facts.WEIGHT_SPECTRAL)

    assert judged(values, mup=True)[1] == []
    (found,) = judged(values)[1]  # all alike: initialised to one norm
    assert found.value == pytest.approx(6.0)
    assert "over 5 of a spectral parametrisation, by which norms are as alike as these" in found.message
    assert judged(changed(9, 1.2 * facts.WEIGHT_SPECTRAL))[1] == []


def test_the_growth_of_a_stream_is_held_to_what_was_declared():
    (found,) = judged(changed(3, 3.5), mup=True)[1]

    assert "is 3.5, over 3 of the declared parametrisation" in found.message
    assert judged(changed(3, 3.5))[1] == []


def test_the_warning_ends_when_the_quantity_has_come_inside_and_not_before():
    judge, _ = judged(changed(12, 9.0))
    present = np.ones(len(SERIES), bool)

    assert judge.judge(10, changed(12, 2.9), present).transitions == []
    (over,) = judge.judge(20, WELL, present).transitions

    assert over.state == "resolved" and "inside its bound again" in over.message
    assert judge.judge(30, changed(12, 9.0), present).transitions == []


def test_open_facts_survive_in_the_state_and_a_run_that_is_watched_late_has_none():
    judge, _ = judged(changed(12, 9.0))
    again = Judge(SERIES, mup=False, every=10, state=judge.state())
    late = Judge(SERIES, mup=False, every=10)

    assert again.summary() == judge.summary()
    assert late.judge(5_000, changed(12, 9.0), np.ones(len(SERIES), bool)).transitions == []
