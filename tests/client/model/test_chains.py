"""Which matrices of a branch follow each other, which lie side by side, and which make attention's logits."""

import pytest
from torch import nn

from internist.model.branches import Matrix, branches_of
from internist.model.chains import chains_of
from internist.model.outline import outline
from internist.model.roles import is_router
from internist.model.views import fans, resolve_view
from tests.client.mup.mup_models import Gpt2, Llama, Mixture, ResidualMlp, SandwichBlock, Stack, TorchEncoder

WIDTH = 32


class Basic(nn.Module):
    """A ResNet's block."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)


class Bottleneck(nn.Module):
    """A deeper ResNet's block."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, channels, 1)


class Flat(nn.Module):
    """A GPT's block without modules for attention and feed-forward."""

    def __init__(self, width):
        super().__init__()
        self.ln1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class Single(nn.Module):
    """One matrix a branch."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.lin = nn.LayerNorm(width), nn.Linear(width, width)


class Listed(nn.Module):
    """Experts in a list, as Mixtral has them, beside one that all tokens pass."""

    def __init__(self, width):
        super().__init__()
        self.gate = nn.Linear(width, 2, bias=False)
        self.experts = nn.ModuleList(
            nn.ModuleDict({"w1": nn.Linear(width, 48), "w2": nn.Linear(48, width), "w3": nn.Linear(width, 48)})
            for _ in range(2)
        )


class FusedGate(nn.Module):
    """As Phi-3 has it."""

    def __init__(self, width):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(width, 128), nn.Linear(64, width)


def found(model):
    """The chains and logits of the first block, with names inside it: stages by branch and expert, and its logits."""
    about = outline(model)
    blocks = [m.name for m in about.modules if m.role == "block"]
    parameters = [p for p in about.parameters if p.owner.block and ("matrix" in p.roles or p.view == "unknown")]
    for p in parameters:
        resolve_view(p, WIDTH, WIDTH)
    matrices = [
        Matrix(p.name, *fans(p), p.owner.module, is_router(p.owner.name, *fans(p)), "experts" in p.view)
        for p in parameters
    ]
    branches, _ = branches_of(model, blocks, matrices)
    inside = {m.name: m for m in matrices if m.name.startswith(blocks[0] + ".")}
    cut = len(blocks[0]) + 1
    chains, logits = {}, []
    for branch in branches:
        if branch.block == blocks[0]:
            own, pair = chains_of(branch, inside, dict(model.named_modules()))
            for chain in own:
                stages = [
                    "|".join(
                        each.matrix[cut:].removesuffix(".weight") + (f"[{each.rows}]" if each.rows else "")
                        for each in s
                    )
                    for s in chain.stages
                ]
                chains[branch.module[cut:], chain.expert] = " > ".join(stages)
            if pair is not None:
                logits.append((pair.query.matrix[cut:], pair.key.matrix[cut:], pair.query_features))
    return chains, logits


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Llama, {"self_attn.o_proj": "self_attn.v_proj > self_attn.o_proj", "mlp.w2": "mlp.w1|mlp.w3 > mlp.w2"}),
        (Gpt2, {"attn.c_proj": "attn.c_attn[32] > attn.c_proj", "mlp.c_proj": "mlp.c_fc > mlp.c_proj"}),
        (lambda: Stack(Flat, WIDTH), {"proj": "qkv[32] > proj", "down": "up > down"}),
        (
            TorchEncoder,
            {"self_attn": "self_attn.in_proj_weight[32] > self_attn.out_proj", "linear2": "linear1 > linear2"},
        ),
        (lambda: Stack(Basic, WIDTH), {"conv2": "conv1 > conv2"}),
        (lambda: Stack(Bottleneck, WIDTH), {"conv3": "conv1 > conv2 > conv3"}),
        (lambda: Stack(Single, WIDTH), {"lin": "lin"}),
        (ResidualMlp, {"3": "1 > 3"}),
        (lambda: ResidualMlp(k=3), {"5": "1 > 3 > 5"}),
        (lambda: Stack(FusedGate, WIDTH), {"down_proj": "gate_up_proj[64] > down_proj"}),
    ],
    ids=["llama", "gpt2", "flat", "torch", "resnet", "bottleneck", "k=1", "k=2", "k=3", "fused gate"],
)  # fmt: skip
def test_the_stages_of_each_branch_are_found(model, expected):
    chains, _ = found(model())

    assert chains == {(module, None): stages for module, stages in expected.items()}


@pytest.mark.parametrize("in_out", [False, True])
def test_a_stack_of_experts_is_one_chain_of_stacks(in_out):
    chains, _ = found(Llama(mlp=lambda width: Mixture(width, in_out=in_out)))

    assert chains["mlp", None] == "mlp.experts.up_proj > mlp.experts.down_proj"


def test_each_expert_of_a_list_is_a_chain():
    chains, _ = found(Llama(mlp=Listed))

    assert chains["mlp", 0] == "mlp.experts.0.w1|mlp.experts.0.w3 > mlp.experts.0.w2"
    assert chains["mlp", 1] == "mlp.experts.1.w1|mlp.experts.1.w3 > mlp.experts.1.w2"


def test_logits_are_made_of_queries_and_keys_unless_a_norm_follows_them():
    apart, fused = found(Llama(keys=2))[1], found(Gpt2())[1]
    model = Llama()
    for layer in model.layers:
        layer.self_attn.q_norm = nn.RMSNorm(8)

    assert apart == [("self_attn.q_proj.weight", "self_attn.k_proj.weight", WIDTH)]
    assert fused == [("attn.c_attn.weight", "attn.c_attn.weight", WIDTH)]
    assert found(model)[1] == []


def test_a_norm_behind_a_branch_leaves_its_stages_as_they_are():
    assert found(Stack(SandwichBlock, WIDTH))[0] == found(Llama())[0]


def test_the_matrices_of_a_branch_are_measured_in_one_turn():
    turns = {p.name: p.turn for p in outline(Llama(depth=4)).parameters if "matrix" in p.roles}

    of_attention = {turn for name, turn in turns.items() if name.startswith("layers.1.self_attn")}
    of_mlp = {turn for name, turn in turns.items() if name.startswith("layers.1.mlp")}
    assert (len(of_attention), len(of_mlp), len(of_attention | of_mlp)) == (1, 1, 2)
    assert len(set(turns.values())) >= 8
