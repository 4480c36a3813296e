"""Tables of numbers for other training stacks, and the command that prints them."""

import json
from importlib.metadata import entry_points

import pytest

import internist.mup as mup
from internist.mup import OPTIMIZERS, plan, scale
from internist.mup.command import command
from internist.mup.rules import PARAMETRIZATIONS
from internist.mup.scale_table import ROWS, size_of

from .mup_models import Llama

GIVEN = {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-8, "init_std": 0.02}
PLAN = "plan --from 256x4 --to 4096x32"


def test_a_table_worked_by_hand():
    """From 256 x 4 to 4096 x 32 under Muon-Kimi: r_n = 16, r_L = 8."""
    table = scale({**GIVEN, "adamw_lr": 3e-3}, from_=(256, 4), to=(4096, 32), optimizer="muon_kimi")
    rows = {row.role: row for row in table.rows}

    hidden = rows["hidden"]
    assert (hidden.lr, hidden.weight_decay, hidden.init_std) == pytest.approx((0.005, 0.4, 0.005))
    assert (hidden.eps, hidden.multiplier) == (None, 0.125)
    assert (rows["input"].lr, rows["input"].init_std) == (3e-3, 0.02)
    assert (rows["output"].multiplier, rows["output"].eps) == pytest.approx((1 / 16, 1e-8 / 16))
    assert (rows["gain"].eps, rows["outer_gain"].eps) == pytest.approx((1e-8 / 128, 1e-8 / 16))
    assert rows["gain"].weight_decay is None
    assert rows["input"].multiplier is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("branch_depth", [1, 3])
def test_to_another_size_and_back_changes_nothing(optimizer, parametrization, branch_depth):
    options = {
        "optimizer": optimizer,
        "parametrization": parametrization,
        "branch_depth": branch_depth,
        "others": "own",
    }
    start = scale(GIVEN, from_=(64, 2), to=(64, 2), **options).hyperparameters

    large = scale(start, from_=(64, 2), to=(768, 24), **options)
    back = scale(large.hyperparameters, from_=(768, 24), to=(64, 2), **options)

    assert back.hyperparameters.keys() == start.keys()
    for quantity, values in start.items():
        assert back.hyperparameters[quantity] == pytest.approx(values)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "muon", "muon_kimi", "muon_mup", "soap"])
def test_a_table_and_a_plan_say_the_same(optimizer):
    table = scale(GIVEN, from_=(16, 2), to=(32, 8), optimizer=optimizer)
    planned = plan(Llama(32, 8), base=(16, 2), optimizer=optimizer, lr=0.02, weight_decay=0.1, init_std=0.02)
    by_role = {
        "input": "embed_tokens.weight", "hidden": "layers.3.mlp.w1.weight", "output": "lm_head.weight",
        "gain": "layers.0.input_layernorm.weight", "outer_gain": "norm.weight",
    }  # fmt: skip
    rows = {row.parameter: row for row in planned.rows}

    for row in table.rows:
        if row.role in by_role:
            other = rows[by_role[row.role]]
            assert (other.lr, other.weight_decay) == pytest.approx((row.lr, row.weight_decay or 0.0))
            assert other.init_std == pytest.approx(row.init_std)
            assert row.eps is None or other.eps == pytest.approx(row.eps)
            assert row.multiplier is None or other.multiplier == row.multiplier


def test_own_steps_inputs_and_outputs_by_the_matrix_optimizer():
    own = {row.role: row for row in scale({"lr": 1.0}, from_=(4, 1), to=(16, 1), optimizer="muon", others="own").rows}
    adamw = {row.role: row for row in scale({"lr": 1.0}, from_=(4, 1), to=(16, 1), optimizer="muon").rows}

    assert (own["input"].lr, own["output"].lr, own["gain"].lr) == (2.0, 2.0, 1.0)
    assert (adamw["input"].lr, adamw["input"].optimizer) == (1.0, "adamw")
    assert own["gain"].optimizer == "adamw"


def test_hyperparameters_may_differ_by_role():
    table = scale({"lr": {"input": 1.0, "hidden": 2.0}}, from_=(4, None), to=(8, None), optimizer="adamw")

    assert table.hyperparameters["lr"] == {"input": 1.0, "hidden": 1.0}
    assert {row.role for row in table.rows} == set(ROWS)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"learning_rate": 1.0}, {}, "expected hyperparameters of lr, .*got 'learning_rate'"),
        ({"weightdecay": 1.0}, {}, "did you mean 'weight_decay'"),
        ({"lr": {"embeding": 1.0}}, {}, "lr: expected roles of input"),
        ({"lr": -1.0}, {}, "expected lr of at least 0, got -1.0"),
        ({"lr": "fast"}, {}, "expected lr to be a number, got 'fast'"),
        ({"adamw_lr": 1.0}, {}, "adamw steps everything"),
        ({}, {"to": (0, 1)}, "to: expected a width of at least 1, got 0"),
        ({}, {"to": (8, None)}, "one size says a depth and the other none: 4x1 and width 8"),
        ({}, {"from_": "4x1"}, r"expected a size of \(width, depth\)"),
        ({}, {"branch_depth": 0}, "branch_depth of at least 1"),
        ({}, {"optimizer": "muonkimi"}, "did you mean 'muon_kimi'"),
        ({}, {"others": "sgd"}, "expected others to be one of"),
    ],
)
def test_bad_arguments_are_refused(given, options, message):
    with pytest.raises(ValueError, match=message):
        scale(given, **{"from_": (4, 1), "to": (8, 1), "optimizer": "adamw", **options})


def test_sizes_are_read_from_text():
    assert size_of("256x4") == (256, 4)
    assert size_of("4096X32") == (4096, 32)
    assert size_of("256") == (256, None)
    for wrong in ("x4", "wide", "0x4", "256x4x2"):
        with pytest.raises(ValueError, match=f"WIDTHxDEPTH or WIDTH, such as 256x4, got {wrong!r}"):
            size_of(wrong)


# -- the command


def test_the_command_prints_a_table(capsys):
    assert command(f"{PLAN} --optimizer muon_kimi --lr 0.02 --weight-decay 0.1".split()) == 0

    out = capsys.readouterr().out
    assert "mup under muon_kimi, from 256x4 to 4096x32, residual branches of two or more transformations" in out
    assert "0.005 (x 0.25)" in out
    assert "[lr 2nd; weight decay, k = 1 D]" in out
    assert "eps" not in out.splitlines()[2]


def test_the_command_prints_json_that_is_the_table(capsys):
    command(f"{PLAN} --lr 0.02 --eps 1e-8 --format json".split())

    table = scale({"lr": 0.02, "eps": 1e-8}, from_=(256, 4), to=(4096, 32), optimizer="adamw")
    assert json.loads(capsys.readouterr().out) == table.to_dict()


def test_yaml_is_the_same_table():
    yaml = pytest.importorskip("yaml")
    table = scale(GIVEN, from_=(256, 4), to=(4096, 32), optimizer="muon_kimi")

    assert yaml.safe_load(table.yaml()) == table.to_dict()
    assert yaml.safe_load(scale({}, from_=(4, None), to=(8, None), optimizer="sgd").yaml())["from"] == {
        "width": 4,
        "depth": None,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan --from 256x4 --to 4096x32 --optimizer moun", "did you mean 'muon'"),
        ("plan --from big --to 4096x32", "expected a size as WIDTHxDEPTH or WIDTH, such as 256x4, got 'big'"),
        ("plan --from 256x4 --to 4096", "one size says a depth and the other none"),
        ("plan --from 256x4 --to 4096x32 --lr -1", "expected lr of at least 0"),
    ],
)
def test_wrong_values_exit_with_two_and_say_why(capsys, arguments, message):
    assert command(arguments.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["", "plan", "plan --from 256x4", "plan --from 1x1 --to 2x2 --format xml"])
def test_wrong_usage_exits_with_two(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        command(arguments.split())

    assert stop.value.code == 2
    assert "usage: internist mup" in capsys.readouterr().err


# -- the package


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'plann'"):
        mup.plann  # noqa: B018


def test_the_command_is_an_entry_point():
    named = {entry.name: entry.value for entry in entry_points(group="internist.commands")}

    assert named.get("mup") == "internist.mup.command:command"
