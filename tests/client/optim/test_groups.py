"""Where every parameter goes, in the words of the table that is printed and stored."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from internist.demo.model import ByteGPT
from internist.model.outline import hidden_matrices, outline
from internist.optim.groups import GROUPS, split_parameters
from internist.optim.muon import Muon


def groups_of(routing):
    """Parameter name -> group name, as the table says."""
    return {row["parameter"]: row["group"] for row in routing.describe()}


def gpt():
    return ByteGPT(width=16, depth=2, heads=2, context=8)


class Conv1D(nn.Module):
    """As in Hugging Face's GPT-2: the weight is (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 8))


class TransposedExperts(Experts):
    """As in Hugging Face's gpt-oss: it says that its weights are (experts, in, out)."""

    is_transposed = True


class TopKRouter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))


class Vit(nn.Module):
    """A patch embedding, a raw position, a learned token, two blocks and a head."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.pos_embed, self.cls_token = nn.Parameter(torch.zeros(1, 5, 8)), nn.Parameter(torch.zeros(1, 1, 8))
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2))
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.ones(()))
        self.head = nn.Linear(8, 10)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16, bias=False)
        self.lm_head.weight = self.embed.weight


def odds():
    """Modules of many kinds in two blocks."""

    def block():
        return nn.ModuleDict(
            {
                "c_attn": Conv1D(12, 4),
                "experts": Experts(),
                "turned": TransposedExperts(),
                "gate": TopKRouter(),
                "conv": nn.Conv1d(4, 6, 3),
                "grouped": nn.Conv2d(4, 8, 3, groups=2),
                "up": nn.ConvTranspose2d(4, 6, 2),
                "q_norm": nn.RMSNorm((2, 4)),
            }
        )

    return nn.ModuleList(block() for _ in range(2))


def test_a_gpt_is_routed_as_stated():
    groups = groups_of(split_parameters(gpt()))

    assert {n for n, g in groups.items() if g == "hidden"} == {
        f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert {n for n, g in groups.items() if g == "hidden.rows=3"} == {f"blocks.{i}.attn.qkv.weight" for i in range(2)}
    assert {n for n, g in groups.items() if g == "embedding"} == {"embed.weight", "position.weight"}
    assert {n for n, g in groups.items() if g == "head"} == {"lm_head.weight"}
    assert all(g == ("bias" if n.endswith("bias") else "gain") for n, g in groups.items() if "ln" in n)


def test_modules_of_other_kinds_are_routed_as_stated():
    rows = {row["parameter"]: row for row in split_parameters(odds()).describe()}

    def view(name):
        return rows[name]["group"].split(".")[0], rows[name]["layout"], rows[name]["row_blocks"]

    assert view("0.c_attn.weight") == ("hidden", "in_out", None)
    assert view("0.experts.gate_up_proj") == ("hidden", "out_in", None)
    assert view("0.turned.gate_up_proj") == ("hidden", "in_out", None)
    assert view("0.gate.weight") == ("hidden", "out_in", None)
    assert view("0.experts.gate_up_proj_bias")[0] == "bias"
    assert view("0.conv.weight") == ("hidden", "conv", None)
    assert view("0.grouped.weight") == ("hidden", "conv", 2)
    assert view("0.up.weight") == ("hidden", "in_out", None)
    assert view("0.q_norm.weight")[0] == "gain"

    groups = groups_of(split_parameters(Vit()))
    assert [
        groups[n] for n in ("patch_embed.weight", "pos_embed", "cls_token", "head.weight", "scale", "stem.weight")
    ] == [
        "embedding",
        "embedding",
        "embedding",
        "head",
        "gain",
        "hidden",
    ]
    assert groups["blocks.0.self_attn.in_proj_weight"] == "hidden.rows=3"


@pytest.mark.parametrize("build", [gpt, odds, Vit, Tied, lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True)])
def test_it_agrees_with_the_monitor(build):
    model = build()
    seen = outline(model)
    parts = {row["parameter"]: row["role"] for row in split_parameters(model).describe()}

    assert {p.name for p in hidden_matrices(seen)} <= {n for n, part in parts.items() if part == "hidden"}
    for parameter in seen.parameters:
        part = parts[parameter.name]
        if parameter.roles == {"vector"}:
            assert part in ("gain", "bias")
        elif "embedding" in parameter.roles or "head" in parameter.roles:
            assert part == "+".join(sorted(parameter.roles))
        elif "matrix" in parameter.roles:
            assert part == "hidden" or parameter.owner.block is None


def test_every_parameter_is_in_one_group_and_the_optimizer_takes_them_all():
    model = gpt()
    routing = split_parameters(model, lr=0.02, adamw_lr=1e-3)
    optimizer = Muon(routing)
    owned = [p for group in optimizer.param_groups for p in group["params"]]

    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    assert sorted(n for group in optimizer.param_groups for n in group["param_names"]) == sorted(
        n for n, _ in model.named_parameters()
    )
    before = [p.detach().clone() for p in owned]
    losses = []
    for _ in range(4):
        ids = torch.arange(16).view(2, 8)
        loss = model(ids, ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(not torch.equal(p, old) for p, old in zip(owned, before, strict=True) if p is not model.position.weight)
    assert losses[-1] < losses[0]


def test_rates_and_decay_are_by_group():
    ratios, options = (
        {"head": 0.5},
        {"embedding": {"weight_decay": 0.3, "betas": (0.8, 0.9)}, "hidden": {"momentum": 0.9}},
    )
    routing = split_parameters(gpt(), lr=0.02, adamw_lr=0.004, lr_ratios=ratios, options=options)
    groups = {group["name"]: group for group in Muon(routing, weight_decay=0.1).param_groups}

    assert {name: group["lr"] for name, group in groups.items()} == {
        "hidden": 0.02,
        "hidden.rows=3": 0.02,
        "embedding": 0.004,
        "head": 0.002,
        "gain": 0.004,
        "bias": 0.004,
    }
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "hidden": 0.1,
        "hidden.rows=3": 0.1,
        "embedding": 0.3,
        "head": 0.1,
        "gain": 0.0,
        "bias": 0.0,
    }
    assert groups["embedding"]["betas"] == (0.8, 0.9) and groups["hidden"]["momentum"] == 0.9
    assert [groups[n]["algorithm"] for n in groups] == ["muon", "muon", "adamw", "adamw", "adamw", "adamw"]
    assert all("lr" not in group for group in split_parameters(gpt()))


def test_a_tied_weight_is_one_parameter_with_both_roles():
    rows = [row for row in split_parameters(Tied()).describe() if "16" in str(row["shape"])]

    assert [(row["parameter"], row["role"], row["algorithm"]) for row in rows] == [
        ("embed.weight", "embedding+head", "adamw")
    ]


def test_frozen_parameters_are_left_out_and_listed():
    model = gpt()
    model.embed.weight.requires_grad_(False)
    routing = split_parameters(model)

    assert [name for name, _ in routing.frozen] == ["embed.weight"]
    assert groups_of(routing)["embed.weight"] == "frozen"
    assert all(p is not model.embed.weight for group in routing for _, p in group["params"])


@pytest.mark.parametrize(
    ("fused", "out", "rows"),
    [
        ({"qkv": nn.Linear(8, 24)}, {"proj": nn.Linear(8, 8)}, 3),
        ({"c_attn": Conv1D(24, 8)}, {"c_proj": Conv1D(8, 8)}, 3),
        ({"qkv_proj": nn.Linear(8, 16)}, {"o_proj": nn.Linear(8, 8)}, [8, 4, 4]),
        ({"qkv": nn.Linear(8, 24)}, {}, None),  # whose rows are whose is not told
        ({"qkv": nn.Linear(8, 22)}, {"proj": nn.Linear(8, 8)}, None),
        ({"query_key_value": nn.Linear(8, 24)}, {"dense": nn.Linear(8, 8)}, None),  # rows go head by head
    ],
)
def test_fused_projections_are_split_where_the_tree_says_whose_rows_are_whose(fused, out, rows):
    block = nn.ModuleDict({"attn": nn.ModuleDict(fused | out)})
    blocks = nn.ModuleList([block, copy.deepcopy(block)])
    routing = split_parameters(blocks, output="1.attn." + next(iter(out or fused)))
    row = routing.describe()[0]

    assert row["parameter"] == f"0.attn.{next(iter(fused))}.weight"
    assert row["row_blocks"] == rows


def test_names_override_and_fused_projections_are_split_where_asked():
    model = gpt()
    overrides, qkv = {r"blocks\.0\.mlp\..*weight": "other"}, {r".*\.qkv\.weight": (16, 32)}
    routing = split_parameters(model, overrides=overrides, qkv=qkv)
    rows = {row["parameter"]: row for row in routing.describe()}

    assert rows["blocks.0.mlp.fc1.weight"]["group"] == "other"
    assert rows["blocks.1.mlp.fc1.weight"]["group"] == "hidden"
    assert rows["blocks.1.attn.qkv.weight"]["row_blocks"] == [16, 32]
    assert next(g for g in Muon(routing).param_groups if g["row_blocks"])["row_blocks"] == (16, 32)


def test_the_table_names_every_parameter_once_and_is_json():
    model = gpt()
    model.lm_head.weight.requires_grad_(False)
    routing = split_parameters(model, qkv={r".*\.qkv\.weight": 3})
    lines = str(routing).splitlines()

    assert str(routing) == routing.table()
    for name, parameter in model.named_parameters():
        (line,) = [each for each in lines if each.split()[:1] == [name]]
        assert " x ".join(map(str, parameter.shape)) in line
    assert json.loads(json.dumps(routing.describe())) == routing.describe()
    total = sum(math.prod(row["shape"]) for row in routing.describe())
    assert total == sum(p.numel() for p in model.parameters())
    assert f"hidden.rows=3: 2 parameters, {2 * 3 * 16 * 16:,} entries" in lines
    assert "row blocks 3" in next(line for line in lines if line.startswith("blocks.0.attn.qkv.weight"))


def test_wrappers_are_looked_through():
    model = gpt()

    assert groups_of(split_parameters(torch.compile(model, backend="eager"))) == groups_of(split_parameters(model))


def test_what_no_rule_places_is_an_error_with_the_choices():
    class Bare(nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.mystery = nn.Parameter(torch.randn(*shape))

    for shape in ((4, 4), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"'0.mystery' of shape .*held by a Bare.*hidden, embedding, head"):
            split_parameters(nn.Sequential(Bare(*shape), nn.Linear(4, 4)))
    placed = split_parameters(nn.Sequential(Bare(4, 4), nn.Linear(4, 4)), overrides={r"0\.mystery": "hidden"})
    assert groups_of(placed)["0.mystery"] == "hidden"
    grouped = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"0\.weight"):
        split_parameters(grouped)


def test_bad_input_is_refused_by_name():
    model = gpt()
    with pytest.raises(ValueError, match="got 'hiden'; did you mean 'hidden'"):
        split_parameters(model, overrides={".*": "hiden"})
    with pytest.raises(ValueError, match=", ".join(GROUPS)):
        split_parameters(model, lr_ratios={"nothing": 1.0})
    with pytest.raises(ValueError, match=r"'embed.weigth' matches no parameter.*near are embed.weight"):
        split_parameters(model, overrides={"embed.weigth": "head"})
    with pytest.raises(ValueError, match="not a valid regular expression"):
        split_parameters(model, overrides={"(": "head"})
    with pytest.raises(ValueError, match=r"'embed.weight' is matched twice, for 'head' and 'other'"):
        split_parameters(model, overrides={r"embed\.weight": "head", r"emb.*": "other"})
    with pytest.raises(ValueError, match="no lr to take it of"):
        split_parameters(model, lr_ratios={"head": 0.5})
    with pytest.raises(ValueError, match=r"'ln_f.bias' of shape \(16,\) is no matrix"):
        split_parameters(model, overrides={r"ln_f\.bias": "hidden"})
    with pytest.raises(ValueError, match=r"qkv names 'embed.weight', which is 'embedding'"):
        split_parameters(model, qkv={r"embed\.weight": 3})
    with pytest.raises(ValueError, match="names no module"):
        split_parameters(model, output="heed")
    with pytest.raises(ValueError, match=r"'1.weight' has no shape yet"):
        split_parameters(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)))
