"""Reports on families: what is compared, what fails, what is named, what is refused."""

import math
from dataclasses import replace

import pytest

from internist.scaling.drawing import drawing
from internist.scaling.errors import NotAFamily
from internist.scaling.members import Member, RunFacts, Shape
from internist.scaling.report import report
from internist.scaling.words import table
from internist.schema.scaling import Excluded

WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8, 16)
NOISE = 0.01
RIGHT = {
    ("activation.rms", "head", "init"): -0.5,
    ("activation.rms", "residual", "init"): 0.0,
    ("block.contribution", "residual", "init"): 0.0,
    ("weight.operator_norm", "hidden", "init"): 0.0,
    ("update.own_mean", "embedding", "init"): 0.0,
    ("update.own_mean", "hidden", "init"): 0.0,
    ("update.own_mean", "head", "init"): 0.0,
    ("update.feature_mean", "residual", "init"): 0.0,
    ("update.feature_mean", "head", "init"): 0.0,
}
"""Exponents in width of a correct family."""
HIDDEN = ("update.own_mean", "hidden", "init")


def facts(width: int, **powers: float) -> RunFacts:
    """Facts of an AdamW run whose numbers are powers of the width."""
    algorithms = {"hidden": "adamw", "embedding": "adamw", "head": "adamw"}
    lr = {role: 1e-3 * width ** powers.get(f"lr_{role}", 0.0) for role in ("embedding", "head")}
    return RunFacts(
        "standard",
        algorithms,
        {**lr, "hidden": width ** powers.get("lr_hidden", -1.0)},
        eps={"hidden": 1e-8 * width ** powers.get("eps", -1.0), "embedding": 1e-8, "head": 1e-8},
        multipliers={"head": 64 / width},
    )


def family(off=None, *, powers=None, seeds=2, widths=WIDTHS, only_algorithms=False) -> list[Member]:
    exponents = {**RIGHT, **{key: RIGHT.get(key, 0.0) + by for key, by in (off or {}).items()}}
    members = []
    for width in widths:
        for seed in range(seeds):
            wobble = NOISE * math.sin(width + 10 * seed)
            values = {key: width**power * math.exp(wobble) for key, power in exponents.items()}
            values["update.own_mean", "head", "init"] *= width / 64  # measured before the hook that multiplies
            told = facts(width, **(powers or {}))
            told = RunFacts("standard", told.algorithms, multipliers=told.multipliers) if only_algorithms else told
            members.append(Member(f"{width}.{seed}", Shape(width, 2, 64, 2, None), seed, values, told))
    return members


def test_a_correct_family_passes_and_gets_no_diagnosis():
    found = report(family())

    assert found.verdict == "PASS"
    assert found.diagnoses == ()
    assert found.summary == "All 9 judged exponents are as a correct parametrisation has them."
    assert [(m.width, m.seed) for m in found.family[:3]] == [(64, 0), (64, 1), (128, 0)]


def test_an_unscaled_hidden_rate_is_named_in_a_sentence():
    grown = {
        HIDDEN: 0.98,
        ("update.feature_mean", "residual", "init"): 0.9,
        ("update.feature_mean", "head", "init"): 0.7,
    }
    found = report(family(grown, powers={"lr_hidden": 0.0}))

    assert found.verdict == "FAIL"
    assert [cause.id for cause in found.diagnoses[0].causes] == ["hidden_rate_not_divided"]
    said = found.diagnoses[0].sentence
    assert said.startswith("hidden matrices: +0.98 ± 0.0")
    assert said.endswith("in width under AdamW: the hidden learning rate is not divided by the width ratio")
    assert found.diagnoses[0].causes[0].evidence == "its exponent in width is +0.00 (-1 is right)"


SHRUNK = {
    ("update.own_mean", role, "init"): -0.5 for role in ("embedding", "hidden", "head")
} | {("update.feature_mean", role, "init"): -0.5 for role in ("residual", "head")}  # fmt: skip


def test_mistakes_that_look_alike_are_one_class_with_the_fact_that_would_tell():
    found = report(family(SHRUNK, only_algorithms=True))

    causes = found.diagnoses[0].causes
    assert {cause.id for cause in causes} == {"eps_not_scaled", "all_rates_fall"}
    assert {cause.evidence for cause in causes} == {""}
    assert "Adam's eps at each size" in {cause.fact for cause in causes}
    assert "not recorded" in table(found)


@pytest.mark.parametrize(
    ("powers", "named"),
    [
        ({"eps": 0.0}, "eps_not_scaled"),
        ({"lr_embedding": -0.5, "lr_hidden": -1.5, "lr_head": -0.5}, "all_rates_fall"),
    ],
)
def test_facts_of_the_runs_separate_a_class(powers, named):
    found = report(family(SHRUNK, powers=powers))

    assert [cause.id for cause in found.diagnoses[0].causes] == [named]


def test_an_eps_far_below_the_gradients_is_not_the_cause():
    members = family(SHRUNK, powers={"eps": 0.0, "lr_embedding": -0.5, "lr_hidden": -1.5, "lr_head": -0.5})
    large = [replace(m, values={**m.values, ("gradient.rms", "hidden", "init"): 1.0}) for m in members]

    assert [cause.id for cause in report(large).diagnoses[0].causes] == ["all_rates_fall"]


def test_two_mistakes_at_once_are_two_diagnoses():
    off = {
        HIDDEN: 1.0,
        ("update.own_mean", "embedding", "init"): -1.0,
        ("update.feature_mean", "residual", "init"): 0.9,
    }
    found = report(family(off, powers={"lr_hidden": 0.0, "lr_embedding": -1.0}))

    assert [d.causes[0].id for d in found.diagnoses] == ["hidden_rate_not_divided", "embedding_rate_divided"]
    assert [d.rank for d in found.diagnoses] == [1, 2]


def test_what_no_known_mistake_explains_fails_without_a_diagnosis():
    found = report(family({("activation.rms", "residual", "init"): 2.0}))

    assert (found.verdict, found.diagnoses) == ("FAIL", ())
    assert found.summary.endswith("and no known mistake explains them.")


def test_growth_that_sets_in_late_is_found_though_all_began_well():
    late = ("weight.operator_norm", "hidden", "late")
    members = [
        replace(m, values={**m.values, late: m.values["weight.operator_norm", "hidden", "init"] * m.width**0.5})
        for m in family()
    ]
    undecayed = [replace(m, facts=replace(m.facts, weight_decay={"hidden": 0.0})) for m in members]
    found = report(undecayed)

    assert {c.id for c in report(members).diagnoses[0].causes} == {"weights_grow", "weight_decay_not_scaled"}
    assert [c.id for c in found.diagnoses[0].causes] == ["weights_grow"]
    assert found.diagnoses[0].sentence.startswith("late growth of hidden weights: +0.50")


def test_a_head_that_begins_at_zero_is_named_and_not_judged():
    members = [replace(m, values={**m.values, ("activation.rms", "head", "init"): 0.0}) for m in family()]
    found = report(members)

    head = next(e for e in found.exponents if (e.metric, e.role) == ("activation.rms", "head"))
    assert (found.verdict, head.judged) == ("PASS", False)
    assert "begins at zero" in head.reason


def test_a_member_with_nan_is_left_out_by_name():
    members = family()
    members[3] = replace(members[3], values={**members[3].values, HIDDEN: math.inf})
    found = report(members, [Excluded("run-9", "elsewhere", "it never began")])

    assert [e.name for e in found.excluded] == ["elsewhere", "128.1"]
    assert found.excluded[1].reason == "update.own_mean of hidden is NaN or infinite (init)"
    assert len(found.family) == 7


def test_too_few_sizes_say_how_many_more_are_needed():
    with pytest.raises(NotAFamily, match=r"1 more width \(there are 64, 128\) or 2 more depths \(there is 2\)"):
        report(family(widths=(64, 128)))


def test_sizes_lost_to_nan_are_told_with_what_is_missing():
    members = [replace(m, values={HIDDEN: math.inf}) if m.width == 256 else m for m in family(widths=(64, 128, 256))]

    with pytest.raises(NotAFamily, match=r"256\.0 is left out: update\.own_mean of hidden is NaN"):
        report(members)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": Shape(512, 2, 96, 2, None)}, r"the number of outputs \(vocabulary\) of 64\.0 is 64, of 512\.1 96"),
        ({"facts": RunFacts("standard", {"hidden": "sgd"})}, "the optimizer of hidden matrices of 64.0 is adamw, of"),
        ({"facts": RunFacts("mup", {"hidden": "adamw"})}, "the declared parametrization of 64.0 is standard"),
    ],
)
def test_models_that_differ_in_more_than_size_are_refused_by_the_fact(change, said):
    members = family()
    members[-1] = replace(members[-1], **change)

    with pytest.raises(NotAFamily, match=said):
        report(members)


def test_width_and_depth_that_grow_together_are_refused():
    members = [replace(m, shape=replace(m.shape, depth=m.width // 32)) for m in family()]

    with pytest.raises(NotAFamily, match="add a model that changes only one of them"):
        report(members)


def test_a_model_without_blocks_has_no_depth_in_a_family_of_depths():
    members = [
        replace(m, shape=Shape(64, depth, 64, 2, None)) for m, depth in zip(family(seeds=1), (0, 2, 4, 8), strict=True)
    ]
    found = report(members)

    assert [e.name for e in found.excluded] == ["64.0"]
    assert "no residual blocks were found in it" in found.excluded[0].reason


def test_the_drawing_is_svg_with_a_panel_for_each_judged_exponent():
    text = drawing(report(family()))

    assert text.startswith("<svg ")
    assert text.count("<g ") == 9
