"""The rules, against the published table, by hand, and against each other."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from internist.mup.rules import (
    OPTIMIZERS,
    RULES,
    SAME,
    Powers,
    Ratios,
    folded,
    optimizer_named,
    router_rule,
    rule,
)
from internist.scaling.counting import right_setup

HALF = 0.5

# Powers of r_n of lr and weight decay, (input, hidden, output), and of r_L of the hidden lr, for branches of two and
# more transformations. The table of arXiv:2603.00541 as read in notes (Muon, Muon-Kimi), the rest derived.
TABLE = {
    "muon": ((HALF, 0, HALF), (-HALF, 0, -HALF), 0),
    "muon_kimi": ((0, -HALF, 0), (0, HALF, 0), 0),
    "muon_mup": ((0, 0, 1), (0, 0, -1), 0),
    "sso": ((0, 0, 1), (0, 0, -1), 0),
    "muon_plus_plus": ((0, 0, 1), (0, 0, -1), 0),
    "adamw": ((0, -1, 0), (0, 1, 0), 0),
    "lion": ((0, -1, 0), (0, 1, 0), 0),
    "sophia": ((0, -1, 0), (0, 1, 0), 0),
    "soap": ((0, -1, 0), (0, 1, 0), 0),
    "shampoo": ((HALF, 0, HALF), (-HALF, 0, -HALF), 0),
    "sgd": ((1, 0, 1), (-1, 0, -1), 1),
}
MATRICES = (("input", 0), ("hidden", 2), ("output", 0))


@pytest.mark.parametrize("optimizer", TABLE)
def test_learning_rates_and_decays_are_those_of_the_table(optimizer):
    rates, decays, depth = TABLE[optimizer]

    rows = [rule(optimizer, role, branch=branch) for role, branch in MATRICES]

    assert [row.lr.width(row.role) for row in rows] == list(rates)
    assert [row.weight_decay.width(row.role) for row in rows] == list(decays)
    assert [row.lr.depth for row in rows] == [0, depth, 0]
    assert [row.weight_decay.depth for row in rows] == [0, -depth, 0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_the_same_multipliers_and_variances(optimizer):
    rows = [rule(optimizer, role, branch=branch) for role, branch in MATRICES]

    assert [row.multiplier for row in rows] == [SAME, Powers(depth=-1), Powers(fan_in=-1)]
    assert [row.init_variance for row in rows] == [SAME, Powers(fan_in=-1), SAME]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_branch_of_one_transformation_is_multiplied_by_the_root_of_the_depth(optimizer):
    row = rule(optimizer, "hidden", branch=1)

    assert row.multiplier == Powers(depth=-HALF)
    assert row.lr.depth == (0 if optimizer == "sgd" else -HALF)


@pytest.mark.parametrize("row", RULES, ids=lambda row: f"{row.parametrization}-{row.optimizer}-{row.role}-{row.branch}")
def test_the_product_of_rate_and_decay_is_the_same_at_every_size(row):
    if row.weight_decay is None:
        assert row.role in ("gain", "bias")
    else:
        assert row.lr + row.weight_decay == SAME


@pytest.mark.parametrize("row", RULES, ids=lambda row: f"{row.parametrization}-{row.optimizer}-{row.role}-{row.branch}")
def test_every_row_says_where_it_is_from(row):
    assert row.source
    assert row.tag.split(";")[0].split(",")[0].split()[0] in ("S", "2nd", "D", "M", "lr")


def test_adams_eps_follows_the_gradients_of_each_role():
    eps = {(role, branch): rule("adamw", role, branch=branch).eps for role, branch in (*MATRICES, ("hidden", 1))}

    assert eps["input", 0] == Powers(fan_out=-1)
    assert eps["output", 0] == Powers(fan_in=-1)
    assert eps["hidden", 2] == Powers(fan_out=-1, depth=-1)
    assert eps["hidden", 1] == Powers(fan_out=-1, depth=-HALF)
    assert rule("adamw", "gain", branch=2).eps == Powers(fan_out=-1, depth=-1)
    assert rule("adamw", "gain").eps == Powers(fan_out=-1)
    assert rule("lion", "hidden", branch=2).eps is None


def test_gains_and_biases_of_a_matrix_optimizer_have_the_rule_of_adamw():
    assert rule("muon_kimi", "gain", branch=2) == rule("adamw", "gain", branch=2)
    assert rule("sgd", "bias", branch=2).lr == Powers(fan_out=1, depth=1)
    assert rule("adamw", "bias", branch=2).lr == SAME
    assert rule("adamw", "bias", branch=1).lr == Powers(depth=-HALF)


def test_a_case_worked_by_hand():
    """From 256 x 4 to 1024 x 16 under Muon-Kimi and AdamW: r_n = r_L = 4."""
    grown = Ratios(fan_in=4, fan_out=4, longest=4, depth=4)

    hidden = rule("muon_kimi", "hidden", branch=2)
    assert hidden.lr.at(grown) == 0.5
    assert hidden.weight_decay.at(grown) == 2.0
    assert hidden.init_variance.at(grown) == 0.25
    assert hidden.multiplier.at(grown) == 0.25
    adamw = rule("adamw", "hidden", branch=2)
    assert (adamw.lr.at(grown), adamw.weight_decay.at(grown), adamw.eps.at(grown)) == (0.25, 4.0, 1 / 16)
    assert rule("sgd", "hidden", branch=2).lr.at(grown) == 4.0


@pytest.mark.parametrize(
    ("optimizer", "length"),
    [
        ("muon", lambda *_: 1.0),
        ("muon_jordan", lambda out, inner: math.sqrt(max(1.0, out / inner))),
        ("muon_kimi", lambda out, inner: 0.2 * math.sqrt(max(out, inner))),
        ("muon_mup", lambda out, inner: math.sqrt(out / inner)),
        ("adamw", lambda out, inner: math.sqrt(out * inner)),
    ],
)
@pytest.mark.parametrize(("small", "large"), [((8, 8), (32, 32)), ((32, 8), (512, 64)), ((8, 32), (16, 512))])
def test_a_hidden_step_has_the_same_operator_norm_at_every_shape(optimizer, length, small, large):
    """The rates against the length of each optimizer's step, √(fan_in / fan_out) ‖ΔW‖₂, also of uneven growth."""
    (out, inner), (OUT, INNER) = small, large
    grown = Ratios(INNER / inner, OUT / out, max(large) / max(small))

    before = math.sqrt(inner / out) * length(out, inner)
    after = math.sqrt(INNER / OUT) * length(OUT, INNER) * rule(optimizer, "hidden").lr.at(grown)
    assert after == pytest.approx(before)


def test_scale_rules_have_the_lengths_that_the_optimizers_have():
    from internist.optim.scaling import SCALES

    assert {row.scale for row in OPTIMIZERS.values()} - {None} <= SCALES.keys()


def test_an_output_folded_into_its_weight_is_a_router_without_a_branch():
    for optimizer, lr in (("adamw", -1), ("sgd", -1), ("muon", -HALF), ("muon_kimi", -1), ("muon_mup", 0)):
        output = folded(rule(optimizer, "output"))

        assert output.multiplier == SAME
        assert output.init_variance == Powers(fan_in=-2)
        assert output.lr.width("output") == lr
        assert output.weight_decay == -output.lr
        assert router_rule(optimizer, branch=0).lr == output.lr
    assert folded(rule("adamw", "output")).eps == SAME
    assert router_rule("adamw", branch=2).eps == Powers(depth=-1)
    assert router_rule("sgd", branch=2).lr.depth == 1


def test_standard_leaves_rates_alone_and_divides_variances_by_the_fan_in():
    for role, branch in MATRICES:
        row = rule("muon_kimi", role, branch=branch, parametrization="standard")

        assert (row.lr, row.weight_decay, row.multiplier) == (SAME, SAME, SAME)
        assert row.init_variance == (SAME if role == "input" else Powers(fan_in=-1))


def test_ntk_is_unit_variance_behind_a_root_of_the_fan_in_folded():
    adamw = rule("adamw", "hidden", parametrization="ntk")
    sgd = rule("sgd", "hidden", parametrization="ntk")

    assert adamw.lr == Powers(fan_in=-HALF)
    assert adamw.eps == Powers(fan_in=HALF)
    assert sgd.lr == Powers(fan_in=-1)
    assert adamw.init_variance == sgd.init_variance == Powers(fan_in=-1)
    assert rule("adamw", "input", parametrization="ntk").lr == SAME


def test_u_mup_is_mup_in_width_but_for_the_inputs_rate_and_has_a_root_of_the_depth_in_every_branch():
    for role, branch in (("hidden", 0), ("output", 0), ("gain", 0), ("bias", 0)):
        own, mup = rule("adamw", role, branch=branch, parametrization="u_mup"), rule("adamw", role, branch=branch)
        assert (own.lr, own.init_variance, own.multiplier) == (mup.lr, mup.init_variance, mup.multiplier)
    assert rule("adamw", "input", parametrization="u_mup").lr == Powers(fan_out=-HALF)
    for branch in (1, 2):
        hidden = rule("adamw", "hidden", branch=branch, parametrization="u_mup")
        assert (hidden.multiplier, hidden.lr) == (Powers(depth=-HALF), Powers(fan_in=-1, depth=-HALF))
        assert hidden.weight_decay == -hidden.lr
        assert rule("adamw", "gain", branch=branch, parametrization="u_mup").lr == Powers(depth=-HALF)


@pytest.mark.parametrize(("family", "name"), [("adam", "adamw"), ("sgd", "sgd"), ("matrix", "muon_mup")])
@pytest.mark.parametrize("rest", ["adam", "sgd"])
@pytest.mark.parametrize("k", [1, 2])
def test_the_scaling_check_counts_from_the_same_rules(family, name, rest, k):
    """`muon_mup` stands for all of Muon's family: the check counts its rates in the norm of its update."""
    outer = {"adam": "adamw", "sgd": "sgd"}[rest]
    inside = rule(name, "hidden", branch=k)
    width, depth = (right_setup(axis, family, rest, branch_matrices=k) for axis in ("width", "depth"))

    assert width.lr_hidden == inside.lr.width("hidden")
    assert width.init_hidden == (inside.init_variance.width("hidden") + 1) / 2
    assert width.lr_embedding == rule(outer, "input").lr.width("input")
    assert width.lr_head == rule(outer, "output").lr.width("output")
    assert width.multiplier_head == rule(outer, "output").multiplier.width("output")
    assert width.init_head == rule(outer, "output").init_variance.width("output") / 2
    assert (depth.lr_hidden, depth.multiplier_branch) == (inside.lr.depth, inside.multiplier.depth)
    assert depth.multiplier_head == depth.lr_head == depth.lr_embedding == 0.0


def test_powers_add_and_turn_round():
    powers = Powers(1, -2, 0.5, -1)

    assert powers + -powers == SAME
    assert (powers * 2).at(Ratios(2, 3, 4, 5)) == pytest.approx(powers.at(Ratios(2, 3, 4, 5)) ** 2)
    assert replace(powers) == powers


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        optimizer_named("AdamW2")
    with pytest.raises(ValueError, match="did you mean 'muon_kimi'"):
        optimizer_named("muon-kimi")
    with pytest.raises(ValueError, match="expected a role of input, hidden"):
        rule("adamw", "head")
    with pytest.raises(ValueError, match="expected a branch of 0 transformations for role 'output', got 2"):
        rule("adamw", "output", branch=2)
    with pytest.raises(ValueError, match="expected a parametrization of mup"):
        rule("adamw", "input", parametrization="sp")


def test_the_table_in_the_docs_is_what_the_rules_say():
    words = {0.5: "√{}", -0.5: "1/√{}", 1: "{}", -1: "1/{}"}

    def cell(optimizer, role, branch=0):
        lr = rule(optimizer, role, branch=branch).lr
        powers = ((lr.width(role), "r_n"), (lr.depth, "r_L"))
        factors = [words[power].format(name) for power, name in powers if power]
        return f"× {' · '.join(factors)}" if factors else "×1"

    columns = (("input", 0), ("hidden", 2), ("hidden", 1), ("output", 0), ("gain", 2), ("gain", 1))
    text = (Path(__file__).parents[3] / "docs" / "mup.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- rules:begin -->\n")[2].partition("<!-- rules:end -->")[0].splitlines()[2:]

    assert shown == [
        f"| `{o.name}` | {' | '.join(cell(o.name, *column) for column in columns)} | {o.tag} |"
        for o in OPTIMIZERS.values()
    ]
