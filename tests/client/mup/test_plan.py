"""Plans: their numbers, what applying them does to models and optimizers, and what they refuse."""

import copy
import io
import json
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from internist.mup import plan
from internist.mup.mark import KEY
from internist.mup.multipliers import Multiplier, multiplier_of, multiply
from internist.mup.planning import Plan
from internist.optim.muon import Muon
from internist.optim.muon_plus_plus import MuonPlusPlus

from .mup_models import VOCABULARY, Gpt2, Llama, Mixture, ResidualMlp, TorchEncoder, flat_mlp, ids

ROUNDING = 1e-6
"""Of float32 products in another order."""
SAMPLING = 0.1
"""Of a standard deviation over the 1,024 entries of a 32 x 32 matrix: four of its standard errors."""


def rows_of(planned):
    return {row.parameter: row for row in planned.rows}


def step(model, optimizer, batch, seed=0):
    targets = torch.randint(VOCABULARY, batch.shape, generator=torch.Generator().manual_seed(seed + 1))
    loss = functional.cross_entropy(model(batch).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


# -- numbers


def test_a_gpt_under_adamw_worked_by_hand():
    """Width 16 to 32, depth 2 to 8: r_n = 2, r_L = 4."""
    rows = rows_of(
        plan(Llama(32, 8), base=(16, 2), optimizer="adamw", lr=1e-3, weight_decay=0.1, eps=1e-8, init_std=0.02)
    )

    matrix = rows["layers.5.self_attn.q_proj.weight"]
    assert (matrix.lr, matrix.weight_decay, matrix.eps) == pytest.approx((5e-4, 0.2, 1e-8 / 8))
    assert (matrix.init_std, matrix.multiplier) == pytest.approx((0.02 / 2**0.5, 0.25))
    embedding = rows["embed_tokens.weight"]
    assert (embedding.lr, embedding.weight_decay, embedding.eps) == pytest.approx((1e-3, 0.1, 5e-9))
    assert (embedding.init_std, embedding.multiplier) == (0.02, 1.0)
    head = rows["lm_head.weight"]
    assert (head.lr, head.weight_decay, head.eps, head.init_std) == pytest.approx((1e-3, 0.1, 5e-9, 0.02))
    assert head.multiplier == 0.5
    gain = rows["layers.0.input_layernorm.weight"]
    assert (gain.lr, gain.weight_decay, gain.eps, gain.init_std) == pytest.approx((1e-3, 0.0, 1e-8 / 8, None))


def test_a_matrix_optimizer_steps_matrices_and_leaves_the_rest_to_adamw():
    planned = plan(Llama(32, 4), base=(8, 2), optimizer="muon_kimi", lr=0.02, adamw_lr=3e-3, weight_decay=0.1)

    rows = rows_of(planned)
    matrix = rows["layers.0.mlp.w1.weight"]
    assert (matrix.optimizer, matrix.lr, matrix.weight_decay) == ("muon_kimi", pytest.approx(0.01), pytest.approx(0.2))
    assert (rows["lm_head.weight"].optimizer, rows["lm_head.weight"].lr) == ("adamw", 3e-3)
    groups = planned.groups()
    assert [(group["name"], group["role"], group["algorithm"]) for group in groups] == [
        ("embedding", "embedding", "adamw"),
        ("hidden", "hidden", "muon"),
        ("gain", "gain", "adamw"),
        ("gain.2", "gain", "adamw"),  # the final norm's, whose eps is larger
        ("head", "head", "adamw"),
    ]
    assert groups[1]["scale"] == "match_rms_adamw"


def test_branches_of_one_transformation_have_their_own_rule():
    rows = rows_of(plan(ResidualMlp(32, 16, k=1), base=(32, 4), optimizer="adamw", lr=1.0, eps=1.0))

    assert rows["blocks.0.1.weight"].multiplier == 0.5
    assert rows["blocks.0.1.weight"].lr == rows["blocks.0.1.bias"].lr == 0.5
    assert rows["blocks.0.1.weight"].eps == 0.5
    two = rows_of(plan(ResidualMlp(32, 16, k=2), base=(32, 4), optimizer="adamw", lr=1.0, eps=1.0))
    assert (two["blocks.0.1.weight"].multiplier, two["blocks.0.1.weight"].lr) == (0.25, 1.0)


def test_a_base_model_and_its_size_give_the_same_rates():
    for make in (Llama, Gpt2, TorchEncoder, ResidualMlp, lambda w, d: Llama(w, d, mlp=Mixture)):
        model, base = make(32, 4), make(16, 2)
        for optimizer in ("adamw", "sgd", "muon"):
            by_model = plan(model, base=base, optimizer=optimizer, weight_decay=0.1)
            by_size = plan(model, base=(16, 2), optimizer=optimizer, weight_decay=0.1)

            assert by_model.multipliers == by_size.multipliers
            for a, b in zip(by_model.rows, by_size.rows, strict=True):
                assert (a.lr, a.weight_decay, a.eps, a.role) == pytest.approx((b.lr, b.weight_decay, b.eps, b.role))


def test_uneven_growth_is_read_from_the_base_models_shapes():
    """Keys that do not grow, though the width does: their step's norm depends on the shape under Muon."""
    model, base = Llama(32, 2, keys=1), Llama(16, 2, keys=2)

    rows = rows_of(plan(model, base=base, optimizer="muon", lr=1.0))

    assert rows["layers.0.self_attn.k_proj.weight"].lr == pytest.approx(0.5**0.5)  # (8, 16) became (8, 32)
    assert rows["layers.0.self_attn.q_proj.weight"].lr == 1.0


def test_a_base_models_weights_say_what_is_drawn_and_zeros_stay():
    base = Llama(16, 2)
    nn.init.normal_(base.layers[0].mlp.w2.weight, std=0.5)
    nn.init.normal_(base.layers[1].mlp.w2.weight, std=0.5)
    nn.init.zeros_(base.lm_head.weight)
    model = Llama(64, 4)

    rows = rows_of(plan(model, base=base))

    assert rows["layers.3.mlp.w2.weight"].init_std == pytest.approx(0.25, rel=SAMPLING)
    assert rows["lm_head.weight"].init_std == 0.0
    said = rows_of(plan(model, base=base, init_std={"head": 0.3}))
    assert said["lm_head.weight"].init_std == 0.3
    assert said["layers.3.mlp.w2.weight"].init_std == rows["layers.3.mlp.w2.weight"].init_std


def test_a_router_has_the_rule_of_an_output_in_its_weight():
    rows = rows_of(plan(Llama(32, 2, mlp=Mixture), base=(16, 2), optimizer="adamw", lr=1.0, init_std=1.0))

    assert rows["layers.0.mlp.gate.weight"].lr == 0.5
    assert rows["layers.0.mlp.gate.weight"].init_std == 0.5


def test_standard_and_ntk_have_no_multipliers():
    for parametrization in ("standard", "ntk"):
        planned = plan(Llama(32, 4), base=(16, 2), parametrization=parametrization)

        assert planned.multipliers == {}
    assert {row.lr for row in plan(Llama(32, 4), base=(16, 2), parametrization="standard").rows} == {1e-3}


def test_u_mup_divides_branches_by_the_root_of_the_depth_and_the_embeddings_rate_by_that_of_the_width():
    planned = plan(Llama(32, 8), base=(16, 2), lr=1e-3, parametrization="u_mup")
    rows = rows_of(planned)

    assert planned.multipliers["layers.3.mlp.w2"].factor == planned.multipliers["lm_head"].factor == 0.5
    assert rows["embed_tokens.weight"].lr == pytest.approx(1e-3 / 2**0.5)
    assert rows["layers.3.mlp.w1.weight"].lr == pytest.approx(1e-3 / 2 / 2)
    assert rows["lm_head.weight"].lr == 1e-3


# -- applying


def test_applying_draws_what_is_planned_and_leaves_classes_and_keys_alone_but_for_a_mark():
    model = Llama(64, 4)
    keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    planned = plan(model, base=(32, 2), init_std={"input": 1.0, "hidden": 0.05, "output": 0.0})

    torch.manual_seed(0)
    planned.apply()

    assert list(model.state_dict()) == [*keys, KEY]
    assert [type(m) for m in model.modules()] == classes
    assert float(model.layers[3].mlp.w1.weight.detach().std()) == pytest.approx(0.05 / 2**0.5, rel=SAMPLING)
    assert float(model.embed_tokens.weight.detach().std()) == pytest.approx(1.0, rel=SAMPLING)
    assert not model.lm_head.weight.any()
    assert planned.departures() == ()


def test_biases_start_at_zero_and_gains_at_one():
    model = TorchEncoder(32, 2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 3.0)

    plan(model, base=(16, 2)).apply()

    assert not model.layers[0].linear1.bias.any()
    assert not model.layers[0].self_attn.in_proj_bias.any()
    assert bool((model.layers[0].norm1.weight == 1.0).all())


def test_a_padding_row_stays_zero():
    model = Llama(32, 2)
    model.embed_tokens = nn.Embedding(VOCABULARY, 32, padding_idx=3)

    plan(model, base=(16, 2)).apply()

    assert not model.embed_tokens.weight[3].any()


@pytest.mark.parametrize("make", [Llama, Gpt2, TorchEncoder, lambda w, d: Llama(w, d, mlp=Mixture)])
def test_the_spectral_start_has_exactly_the_norm(make):
    model = make(32, 2)
    planned = plan(model, base=(16, 2), init="spectral", radius=1.5)

    planned.apply()

    tensors = dict(model.named_parameters())
    matrices = [row for row in planned.rows if row.init_norm is not None]
    assert {row.role for row in matrices} == {"hidden"}
    for row in matrices:
        weight = tensors[row.parameter].detach()
        weight = weight.mT if row.layout == "in_out" else weight
        for matrix in weight.chunk(row.row_blocks or 1) if weight.dim() == 2 else weight:
            norm = float(torch.linalg.matrix_norm(matrix.double(), ord=2))
            assert norm == pytest.approx(row.init_norm, rel=1e-5)
    square = rows_of(planned).get("layers.0.self_attn.o_proj.weight")
    assert square is None or square.init_norm == 1.5


def test_multipliers_multiply_branches_and_head_and_not_its_bias():
    model = TorchEncoder(32, 4)
    planned = plan(model, base=(16, 2), optimizer="adamw")
    planned.apply()
    nn.init.normal_(model.head.bias)
    bare = copy.deepcopy(model)
    for module in bare.modules():
        multiply(module, 1.0)
    x, batch = torch.randn(2, 8, 32), ids()

    assert torch.equal(model.layers[0].linear2(torch.ones(64)), bare.layers[0].linear2(torch.ones(64)) * 0.5)
    attended, plain = model.layers[0].self_attn(x, x, x)[0], bare.layers[0].self_attn(x, x, x)[0]
    assert torch.allclose(attended, plain * 0.5, atol=ROUNDING)
    expected = bare.head(x) * 0.5 + bare.head.bias * 0.5
    assert torch.allclose(model.head(x), expected, atol=ROUNDING)
    assert not torch.allclose(model(batch), bare(batch))


def test_applying_twice_is_applying_once_and_another_plan_replaces_it():
    model = Llama(32, 4)
    planned = plan(model, base=(16, 2))

    torch.manual_seed(1)
    planned.apply()
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    planned.apply()

    assert all(torch.equal(once[name], tensor) for name, tensor in model.state_dict().items())
    assert multiplier_of(model.lm_head) == multiplier_of(model.layers[0].mlp.w2) == 0.5
    assert len(model.lm_head._forward_hooks) == 1
    plan(model, base=(8, 4)).apply()
    assert (multiplier_of(model.lm_head), multiplier_of(model.layers[0].mlp.w2)) == (0.25, 1.0)


def test_trained_weights_are_refused_and_drawn_where_that_is_said():
    normed, bare = Llama(32, 2), ResidualMlp(32, 2)
    with torch.no_grad():
        normed.norm.weight[0] = 1.1
        bare.blocks[1][1].weight += 0.2

    for model, name in ((normed, "norm.weight"), (bare, r"blocks.1.1.weight")):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        planned = plan(model, base=(16, 2))
        with pytest.raises(ValueError, match=f"'{name}' looks trained.*init=None.*redraw=True"):
            planned.apply()
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

        planned.apply(redraw=True)
        assert planned.departures() == ()


def test_frozen_weights_are_never_drawn_whatever_they_are():
    model = Llama(32, 2)
    with torch.no_grad():
        model.norm.weight[0] = 1.1
    model.norm.requires_grad_(False)
    model.embed_tokens.requires_grad_(False)
    before = model.embed_tokens.weight.clone()

    plan(model, base=(16, 2)).apply()

    assert torch.equal(model.embed_tokens.weight, before) and model.norm.weight[0] == 1.1


def test_a_planned_state_is_refused_by_a_model_without_the_plan_and_by_another_plan():
    planned, bare, other, same = (Llama(32, 4) for _ in range(4))
    plan(planned, base=(16, 2)).apply()
    plan(other, base=(8, 2)).apply()
    plan(same, base=(16, 2)).set_multipliers()
    state = planned.state_dict()

    with pytest.raises(RuntimeError, match=rf'Unexpected key\(s\) in state_dict: "{KEY}"'):
        bare.load_state_dict(state)
    with pytest.raises(RuntimeError, match="saved under a plan with other multipliers"):
        other.load_state_dict(state)
    same.load_state_dict(state)
    assert torch.equal(same(ids()), planned(ids()))


def test_a_state_without_a_plan_is_told_of_by_a_planned_model(caplog):
    planned, bare = Llama(32, 2), Llama(32, 2)
    plan(planned, base=(16, 2)).apply()

    with caplog.at_level(logging.WARNING, "internist"):
        planned.load_state_dict(bare.state_dict())

    assert "says nothing of multipliers" in caplog.text
    plan(planned, base=(32, 2)).set_multipliers()
    assert KEY not in planned.state_dict()


def test_a_copy_and_a_pickle_keep_their_multipliers():
    model = ResidualMlp(32, 4)
    plan(model, base=(16, 2)).apply()
    x = torch.randn(5, 8)

    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert multiplier_of(other.leave) == 0.5
        assert torch.equal(other.state_dict()[KEY], model.state_dict()[KEY])


def test_a_compiled_model_is_multiplied_too():
    model = ResidualMlp(32, 4)
    plan(model, base=(16, 2)).apply()
    x = torch.randn(5, 8)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    assert torch.allclose(compiled(x), model(x), atol=ROUNDING)
    planned = plan(compiled, base=(16, 2))
    assert planned.multipliers == plan(model, base=(16, 2)).multipliers


def test_a_data_parallel_model_is_planned_and_multiplied_as_the_one_in_it(tmp_path):
    model = ResidualMlp(32, 4)
    x = torch.randn(5, 8)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        planned = plan(model, base=(16, 2), optimizer="sgd", lr=0.1)
        optimizer = torch.optim.SGD(planned.apply())
        wrapped = nn.parallel.DistributedDataParallel(model)
        before = wrapped(x)
        before.square().mean().backward()
        optimizer.step()

        assert multiplier_of(wrapped.module.leave) == 0.5
        assert not torch.equal(model(x), before)
        assert [row.parameter for row in plan(wrapped, base=(16, 2)).rows] == [row.parameter for row in planned.rows]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_head_in_its_weights_takes_the_same_steps_as_one_behind_a_multiplier(optimizer):
    """The two forms are one function and one training run, up to rounding."""
    logits = []
    for head in ("multiplier", "weights"):
        model = Llama(32, 2)
        planned = plan(model, base=(8, 2), optimizer=optimizer, lr=0.05, init_std=0.1, weight_decay=0.1, head=head)
        torch.manual_seed(0)
        groups = planned.apply()
        made = torch.optim.SGD(groups) if optimizer == "sgd" else torch.optim.AdamW(groups)
        for number in range(4):
            step(model, made, ids(seed=number), seed=number)
        logits.append(model(ids(seed=9)).detach())

    assert torch.allclose(*logits, atol=1e-4)
    assert float(logits[0].abs().max()) > 0.01


def test_plans_make_groups_that_every_optimizer_takes():
    batch = ids()
    for name, build in (
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("muon", Muon),
        ("muon_jordan", Muon),
        ("muon_kimi", Muon),
        ("muon_mup", Muon),
        ("muon_plus_plus", MuonPlusPlus),
    ):
        model = Llama(32, 2, mlp=Mixture)
        groups = plan(model, base=(16, 2), optimizer=name, lr=0.01, weight_decay=0.1, init="spectral").apply()
        optimizer = build(groups)
        losses = [step(model, optimizer, batch) for _ in range(5)]

        assert losses[-1] < losses[0], name
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_torchs_muon_takes_the_matrix_groups_and_their_scale():
    groups = plan(Llama(32, 2), base=(16, 2), optimizer="muon_kimi", lr=0.02).apply()

    muon = torch.optim.Muon([group for group in groups if group["algorithm"] == "muon"])

    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    assert muon.param_groups[0]["lr"] == pytest.approx(0.02 / 2**0.5)


def test_parameters_that_want_no_gradient_are_planned_and_in_no_group():
    model = Llama(32, 2)
    model.embed_tokens.weight.requires_grad_(False)

    planned = plan(model, base=(16, 2))

    assert "embed_tokens.weight" in rows_of(planned)
    assert "embed_tokens.weight" not in {name for group in planned.groups() for name, _ in group["params"]}


def test_weights_are_left_alone_and_told_of_where_nothing_is_to_be_drawn(caplog):
    model = Llama(32, 2)
    plan(model, base=(16, 2), init_std=0.1).apply()
    nn.init.normal_(model.layers[0].mlp.w1.weight, std=1.0)
    before = model.layers[0].mlp.w1.weight.clone()

    with caplog.at_level(logging.WARNING, "internist"):
        plan(model, base=(16, 2), init=None, init_std=0.1).apply()

    assert torch.equal(model.layers[0].mlp.w1.weight, before)
    assert len(caplog.records) == 1
    assert "layers.0.mlp.w1.weight has RMS" in caplog.text
    assert "w2" not in caplog.text
    assert multiplier_of(model.lm_head) == 0.5


def test_weights_without_storage_are_not_drawn():
    with torch.device("meta"):
        model = Llama(32, 2)

    with pytest.raises(ValueError, match=r"'embed_tokens\.weight' is on the meta device"):
        plan(model, base=(16, 2)).apply()


def test_a_module_that_answers_with_no_tensor_is_not_multiplied():
    class Answer(nn.Module):
        def forward(self, x):
            return {"x": x}

    module = Answer()
    multiply(module, 0.5)

    with pytest.raises(TypeError, match="answered with a dict"):
        module(torch.ones(1))
    assert Multiplier(0.5)(module, (), (torch.ones(1), None))[0] == 0.5


# -- the table


def test_the_table_explains_every_parameter_in_words():
    planned = plan(Llama(32, 4), base=(16, 2), optimizer="muon_kimi", lr=0.02, weight_decay=0.1)

    table = str(planned)

    assert "layers.{0-3}.mlp.w2.weight" in table
    assert "decay x 1.414 (r_in^0.5 r_out^-0.5 r_max^0.5) keeps lr × decay" in table
    assert "branch's output x 0.5 (r_L^-1)" in table
    assert "layers.{0-3}.self_attn.o_proj  x 0.5" in table
    assert "output head: fan-in 32 is 2 times the base's" in table
    assert all(row.reason for row in planned.rows)


# -- in a checkpoint


def test_a_plan_travels_in_a_checkpoint():
    model = Llama(32, 4)
    planned = plan(model, base=(16, 2), optimizer="muon_kimi", weight_decay=0.1)
    planned.apply()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "plan": planned.state_dict()}, file)
    file.seek(0)

    saved = torch.load(file, weights_only=True)
    resumed = Llama(32, 4)
    loaded = Plan.load(resumed, saved["plan"])
    loaded.set_multipliers()
    resumed.load_state_dict(saved["model"])

    assert loaded.rows == planned.rows
    assert torch.equal(resumed(ids()), model(ids()))
    assert [g["lr"] for g in loaded.groups()] == [g["lr"] for g in planned.groups()]
    assert json.loads(json.dumps(planned.state_dict())) == planned.state_dict()
    planned.load_state_dict(saved["plan"])


def test_a_plan_refuses_a_model_that_it_was_not_made_for():
    saved = plan(Llama(32, 4), base=(16, 2)).state_dict()

    with pytest.raises(ValueError, match=r"'embed_tokens\.weight' has shape \(17, 64\) here and \(17, 32\) there"):
        Plan.load(Llama(64, 4), saved)
    with pytest.raises(ValueError, match=r"it has no parameter 'layers\.3\.self_attn"):
        Plan.load(Llama(32, 3), saved)
    with pytest.raises(ValueError, match=r"says nothing of parameter 'layers\.4\.self_attn"):
        Plan.load(Llama(32, 5), saved)
    with pytest.raises(ValueError, match=r"differs at 'embed_tokens\.weight': eps is 5e-09 there, 2\.5e-09 here"):
        plan(Llama(32, 4), base=(8, 2)).load_state_dict(saved)
    with pytest.raises(ValueError, match="expected a plan of format 1, got None"):
        Plan.load(Llama(32, 4), {})


# -- what is refused


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ((64, 2), "wider than the model: 64 against 32"),
        ((16, 8), "deeper than the model: 8 blocks against 4"),
        ((0, 2), "positive width, got 0"),
        ((16, -1), "number of blocks or None, got -1"),
        ((16,), r"\(width, depth\) or a model"),
        (Llama(64, 2), "larger than the model: fan_out of 'embed_tokens.weight' is 64 there and 32 here"),
        (Llama(16, 6), "deeper than the model, or of another family: only it has 'layers.4"),
        (Gpt2(16, 2), "another family: it has no parameter 'embed_tokens.weight'"),
        (Llama(16, 2, mlp=Mixture), "another family: it has no parameter 'layers.0.mlp.w1.weight'"),
    ],
)
def test_bad_bases_are_refused(base, message):
    with pytest.raises(ValueError, match=message):
        plan(Llama(32, 4), base=base)


def test_a_base_of_another_vocabulary_is_refused():
    base = Llama(16, 2)
    base.lm_head = nn.Linear(16, 5, bias=False)

    with pytest.raises(ValueError, match=r"differs in more than width and depth.*it makes 17 outputs and the base's 5"):
        plan(Llama(32, 4), base=base)


def test_an_input_whose_fan_in_grows_is_refused():
    with pytest.raises(ValueError, match="as an input its fan_in is fixed, and it is 16 here and 8 in the base"):
        plan(flat_mlp(32, inputs=16), base=flat_mlp(16, inputs=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"lr": -1.0}, "expected lr of at least 0, got -1.0"),
        ({"lr": float("nan")}, "expected lr of at least 0, got nan"),
        ({"init": "orthogonal"}, "expected init to be one of 'normal', 'spectral', None"),
        ({"parametrization": "sp"}, "expected parametrization to be one of 'mup'"),
        ({"adamw_lr": 1e-3}, "adamw_lr is for what a matrix optimizer leaves to AdamW, and adamw steps everything"),
        ({"init_std": {"heads": 1.0}}, "expected roles of input, hidden, output, got 'heads'"),
        ({"branch_depth": 0}, "expected a branch_depth of at least 1, got 0"),
        ({"head": "none"}, "expected head to be one of 'multiplier', 'weights'"),
        ({"output": "lm_haed"}, "output='lm_haed' names no module"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(Llama(32, 4), base=(16, 2), **options)


def test_a_rate_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match=r"expected lr to be a number, got '0\.1'"):
        plan(Llama(32, 4), base=(16, 2), lr="0.1")


def test_a_tied_head_cannot_be_in_its_weights():
    with pytest.raises(ValueError, match=r"'wte\.weight' is embedding and head at once.*head='multiplier'"):
        plan(Gpt2(32, 4), base=(16, 2), head="weights")
