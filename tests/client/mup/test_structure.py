"""What a plan reads from module trees of every build, and what it refuses to guess."""

import re

import pytest
import torch
from torch import nn

from internist.mup import plan
from internist.mup.structure import structure

from .mup_models import (
    VOCABULARY,
    Attention,
    BertBlock,
    Block,
    Gpt2,
    Llama,
    Mixture,
    ResidualMlp,
    SandwichBlock,
    Stack,
    SwiGlu,
    TorchEncoder,
    flat_mlp,
)


def roles_of(model, **options):
    """Parameter name -> role, or `tied`."""
    return {p.name: "tied" if p.is_tied else p.role for p in structure(model, **options).parts}


def multiplied(model, **options):
    """Modules with a multiplier, of a model twice as deep and as wide as its base."""
    found = structure(model)
    return plan(model, base=(found.width() // 2, found.depth // 2 or None), **options).multipliers


def test_a_llama_has_two_branches_a_block_and_a_head():
    model = Llama(width=32, depth=2)

    found = structure(model)

    assert (found.width(), found.depth, found.outputs) == (32, 2, ["lm_head"])
    assert [(b.module, b.transformations) for b in found.branches[:2]] == [
        ("layers.0.self_attn.o_proj", 2),
        ("layers.0.mlp.w2", 2),
    ]
    assert set(multiplied(model)) == {f"layers.{i}.{m}" for i in (0, 1) for m in ("self_attn.o_proj", "mlp.w2")} | {
        "lm_head"
    }
    roles = roles_of(model)
    assert roles["embed_tokens.weight"] == "input"
    assert roles["layers.0.input_layernorm.weight"] == roles["norm.weight"] == "gain"
    assert roles["layers.1.mlp.w3.weight"] == "hidden"
    assert roles["lm_head.weight"] == "output"


def test_keys_of_fewer_heads_are_hidden_matrices():
    model = Llama(width=32, keys=1)

    part = next(p for p in structure(model).parts if p.name == "layers.0.self_attn.k_proj.weight")

    assert (part.role, part.fan_out, part.fan_in) == ("hidden", 8, 32)
    assert "fewer heads" in part.note


def test_a_gpt2_of_transposed_layers_is_tied_and_fused():
    found = structure(Gpt2(width=32))
    fused = next(p for p in found.parts if p.name == "h.0.attn.c_attn.weight")

    assert (fused.fan_out, fused.fan_in, fused.layout) == (96, 32, "in_out")
    assert "fused" in fused.note
    tied = next(p for p in found.parts if p.is_tied)
    assert (tied.name, tied.fan_out, tied.fan_in) == ("wte.weight", 32, VOCABULARY)
    assert [b.module for b in found.branches[:2]] == ["h.0.attn.c_proj", "h.0.mlp.c_proj"]
    assert found.width() == 32


def test_a_head_that_is_registered_before_its_embedding_is_tied_the_same():
    model = nn.Module()
    model.head = nn.Linear(32, VOCABULARY, bias=False)
    model.embed = nn.Embedding(VOCABULARY, 32)
    model.layers = nn.ModuleList(Block(32) for _ in range(2))
    model.embed.weight = model.head.weight

    tied = next(p for p in structure(model).parts if p.is_tied)

    assert (tied.fan_out, tied.fan_in, tied.layout) == (32, VOCABULARY, "in_out")
    assert structure(model).outputs == ["head"]


@pytest.mark.parametrize("in_out", [False, True])
def test_experts_are_stacks_behind_a_router_and_their_sum_is_the_branch(in_out):
    model = Llama(width=32, mlp=lambda width: Mixture(width, in_out=in_out))

    parts = {p.name: p for p in structure(model).parts}
    up, down = parts["layers.0.mlp.experts.up_proj"], parts["layers.0.mlp.experts.down_proj"]

    assert (up.role, up.fan_out, up.fan_in) == ("hidden", 64, 32)
    assert (down.role, down.fan_out, down.fan_in) == ("hidden", 32, 64)
    assert up.layout == ("in_out" if in_out else "out_in")
    assert parts["layers.0.mlp.gate.weight"].role == "router"
    assert "layers.0.mlp" in multiplied(model)


def test_a_list_of_experts_is_one_branch():
    class Many(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.gate = nn.Linear(width, 3, bias=False)
            self.experts = nn.ModuleList(SwiGlu(width) for _ in range(3))

    branches = structure(Llama(width=32, mlp=Many)).branches

    assert [(b.module, b.transformations) for b in branches[:2]] == [
        ("layers.0.self_attn.o_proj", 2),
        ("layers.0.mlp", 2),
    ]


def test_experts_of_one_layer_are_a_branch_of_one_transformation():
    class Many(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    branch = structure(Llama(width=32, mlp=Many)).branches[1]

    assert (branch.module, branch.transformations) == ("layers.0.mlp", 1)


def test_attention_of_torch_is_multiplied_as_a_whole():
    found = structure(TorchEncoder(width=32))

    assert [(b.module, b.transformations) for b in found.branches[:2]] == [
        ("layers.0.self_attn", 2),
        ("layers.0.linear2", 2),
    ]
    fused = next(p for p in found.parts if p.name == "layers.0.self_attn.in_proj_weight")
    assert (fused.role, fused.row_blocks, fused.fan_in) == ("hidden", 3, 32)


def test_a_feed_forward_of_two_children_is_one_branch():
    branches = structure(Stack(BertBlock)).branches[:2]

    assert [(b.module, b.transformations) for b in branches] == [
        ("layers.0.attention.output.dense", 2),
        ("layers.0.output.dense", 2),
    ]


def test_branches_in_a_list_within_a_block_are_told_apart():
    class Listed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.ModuleList([Attention(width), SwiGlu(width)])

    assert [b.module for b in structure(Stack(Listed)).branches[:2]] == [
        "layers.0.layer.0.o_proj",
        "layers.0.layer.1.w2",
    ]


def test_layers_that_lie_directly_in_a_block_are_attention_and_the_rest():
    class Direct(nn.Module):
        def __init__(self, width):
            super().__init__()
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                setattr(self, name, nn.Linear(width, width))
            self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    assert [b.module for b in structure(Stack(Direct)).branches[:2]] == ["layers.0.o_proj", "layers.0.fc2"]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_transformations_of_a_branch_are_counted(k):
    found = structure(ResidualMlp(k=k))

    assert {b.transformations for b in found.branches} == {min(k, 2)}
    assert found.branches[0].module == f"blocks.0.{2 * k - 1}"
    assert roles_of(ResidualMlp(k=k))["enter.weight"] == "input"
    assert structure(ResidualMlp(k=2), branch_depth=1).branches[0].transformations == 1


def test_a_model_of_one_block_has_a_depth_of_one():
    assert structure(Llama(depth=1)).depth == 1
    assert structure(Llama(depth=1)).branches[0].module == "layers.0.self_attn.o_proj"


def test_a_flat_mlp_has_an_input_hidden_layers_a_head_and_no_depth():
    found = structure(flat_mlp(width=32))

    assert roles_of(flat_mlp()) == {
        "0.weight": "input", "0.bias": "bias", "2.weight": "hidden", "2.bias": "bias", "4.weight": "output",
        "4.bias": "bias",
    }  # fmt: skip
    assert (found.width(), found.depth, found.branches) == (32, 0, [])


def test_positions_and_learned_tokens_are_inputs():
    model = Llama()
    model.pos_embed, model.cls_token = nn.Parameter(torch.zeros(1, 5, 32)), nn.Parameter(torch.zeros(1, 1, 32))

    assert {roles_of(model)[name] for name in ("pos_embed", "cls_token")} == {"input"}
    assert structure(model).width() == 32


# -- what is refused


def test_depth_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"3 blocks deep and the model has no residual blocks.*base=\(width, None\)"):
        plan(flat_mlp(), base=(16, 3))


def test_a_norm_after_a_branch_is_refused_with_what_to_say_and_can_be_said():
    model = Stack(SandwichBlock, depth=4)

    with pytest.raises(ValueError, match=r"block 'layers.0'.*more norms.*post_feedforward_layernorm.*'branch'"):
        plan(model, base=(16, 2))
    said = {r"layers\.\d+\.post_(attention|feedforward)_layernorm": "branch"}
    placed = plan(model, base=(16, 2), roles=said).multipliers

    assert placed["layers.3.post_attention_layernorm"].factor == 0.5
    assert "layers.3.self_attn.o_proj" not in placed
    assert plan(model, base=(16, 4)).multipliers.keys() == {"head"}  # as deep as the base: nothing to multiply


def test_a_parameter_that_no_rule_places_is_refused_with_the_choices_and_can_be_said():
    model = Llama()
    model.mystery = nn.Parameter(torch.zeros(4, 32))

    with pytest.raises(ValueError, match=r"no rule places parameter 'mystery'.*one of input, hidden, output"):
        plan(model, base=(16, 1))
    assert roles_of(model, roles={"mystery": "embedding"})["mystery"] == "input"


def test_a_second_head_is_refused_with_the_choices_and_can_be_said():
    model = Llama()
    model.value = nn.Linear(32, 1)

    with pytest.raises(ValueError, match=r"parameter 'value.weight'.*32 to 1 outside the blocks"):
        plan(model, base=(16, 1))
    assert set(multiplied_heads(model)) >= {"value", "lm_head"}


def multiplied_heads(model):
    return plan(model, base=(16, 1), roles={r"value\.weight": "output"}).multipliers


def test_a_weight_that_is_embedding_and_hidden_matrix_is_refused():
    model = Llama()
    model.layers[0].self_attn.q_proj.weight = nn.Parameter(torch.randn(32, 32))
    model.embed_tokens = nn.Embedding(32, 32)
    model.layers[0].self_attn.q_proj.weight = model.embed_tokens.weight

    with pytest.raises(ValueError, match=r"contradict.*input in embed_tokens, hidden in layers.0"):
        plan(model, base=(16, 1))


def test_a_head_that_takes_another_width_than_the_stream_is_refused():
    model = Llama()
    model.lm_head = nn.Linear(48, VOCABULARY)

    with pytest.raises(ValueError, match=r"'lm_head.weight'.*takes 48 and the blocks' stream is 32 wide"):
        plan(model, base=(16, 1))


def test_a_model_without_a_head_is_refused_unless_that_is_said():
    model = Llama()
    del model.lm_head

    with pytest.raises(ValueError, match="no output head was found"):
        plan(model, base=(16, 1))
    assert "lm_head" not in plan(model, base=(16, 1), output=False).multipliers


def test_a_width_that_shapes_disagree_on_is_refused_with_what_was_looked_at():
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))

    with pytest.raises(ValueError, match=r"'0.weight' makes 64; '4.weight' takes 32.*smaller model"):
        plan(model, base=(16, None))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"layers": "stream"}, "expected a role of input, hidden"),
        ({"lm_haed.*": "output"}, "matches no parameter or module.*near are lm_head"),
        ({"(": "output"}, "not a valid regular expression"),
        ({r"lm_head\.weight": "output", r".*head\.weight": "hidden"}, "matched twice, as 'output' and 'hidden'"),
        ({"lm_head": "branch"}, "is in no block; blocks are layers.0, layers.1"),
    ],
)
def test_bad_roles_are_refused(roles, message):
    with pytest.raises(ValueError, match=message):
        plan(Llama(), base=(16, 1), roles=roles)


def test_a_lazy_parameter_is_refused():
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet"):
        plan(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), base=(2, None))


def test_blocks_of_bare_layers_can_be_said():
    model = nn.Module()
    model.enter = nn.Linear(4, 16)
    model.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
    model.leave = nn.Linear(16, 2)

    found = structure(model, roles={r"layers\.\d": "block"})

    assert (found.depth, {b.transformations for b in found.branches}) == (4, {1})
    assert [b.module for b in found.branches] == found.blocks
    assert not re.search("block", " ".join(structure(model).blocks))
