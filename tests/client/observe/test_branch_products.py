"""The spectral conditions under width and depth, against float64 products of singular values worked by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import internist
from internist.mup.multipliers import multiply
from tests.client.mup.mup_models import Attention, Gpt2, Llama, Mixture, Stack, SwiGlu, ids
from tests.client.points import read

TOLERANCE = 1e-5
"""Relative; norms are exact to float32's rounding, and a product has a few of them."""
MEASURED = 0.1
"""Relative; what the block multiplies by is measured where two branches add up, which are not quite independent."""
METRICS = ["branch.product", "branch.first_order", "branch.second_order"]
PAIR = ["attention.qk_product", "attention.qk_first_order", "attention.qk_second_order"]
WIDTH = 32


class Depth(nn.Module):
    """A pre-norm block that multiplies what its branches add."""

    def __init__(self, width, alpha=0.25):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = (
            nn.RMSNorm(width),
            Attention(width),
            nn.RMSNorm(width),
            SwiGlu(width),
        )
        self.alpha = alpha

    def forward(self, x):
        x = x + self.alpha * self.attn(self.norm1(x))
        return x + self.alpha * self.mlp(self.norm2(x))


class Single(nn.Module):
    """A block of one matrix."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.lin = nn.RMSNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.lin(self.norm(x)) / 4


class Residual(nn.Module):
    """A ResNet's block."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self, channels=8, depth=2):
        super().__init__()
        self.enter = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.ModuleList(Residual(channels) for _ in range(depth))
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


def trained(model, inputs, directory, *, metrics=None, steps=2):
    """Points and series of a watched run, and the parameters before and after its last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with internist.watch(model, optimizer, mode="offline", directory=directory, metrics=metrics, max_overhead=0) as run:
        for _ in range(steps):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.zero_grad()
            out = model(inputs)
            functional.cross_entropy(
                out.reshape(-1, out.shape[-1]), torch.zeros(out[..., 0].numel(), dtype=int)
            ).backward()
            optimizer.step()
    points, series, _ = read(run.directory)
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {key: own[steps - 1] for key, own in points.items() if steps - 1 in own}, series, before, after


def operator_norm(matrix, rows=None):
    """R of a (fan_out, fan_in) matrix in float64; of `rows` of it what it is at most."""
    matrix = matrix.double().flatten(1)
    return math.sqrt(matrix.shape[1] / (rows or matrix.shape[0])) * torch.linalg.svdvals(matrix)[0].item()


def expected(stages, before, after, *, depth, alpha, rows=None):
    """(product, first order by matrix, second order) of stages, each a list of names, as the theory writes them."""
    rows = rows or {}
    norm = {n: operator_norm(after[n], rows.get(n)) for stage in stages for n in stage}
    moved = {n: operator_norm(after[n] - before[n], rows.get(n)) for stage in stages for n in stage}
    weights = [max(norm[n] for n in stage) for stage in stages]
    updates = [max(moved[n] for n in stage) for stage in stages]
    if len(stages) == 1:
        (name,) = stages[0]
        return math.sqrt(depth) * alpha * weights[0], {name: depth * alpha * moved[name]}, None
    scale = depth * alpha
    assert len(stages) == 2
    first = {n: scale * moved[n] * weights[1 - i] for i, stage in enumerate(stages) for n in stage}
    return scale * weights[0] * weights[1], first, scale * updates[0] * updates[1]


def check(points, module, wanted, *, tolerance=TOLERANCE):
    product, first, second = wanted
    assert points["branch.product", module, None] == pytest.approx(product, rel=tolerance)
    for name, value in first.items():
        assert points["branch.first_order", name, None] == pytest.approx(value, rel=tolerance)
    assert points.get(("branch.second_order", module, None)) == (second and pytest.approx(second, rel=tolerance))


def test_a_llamas_products_are_those_of_its_own_pairs(tmp_path):
    torch.manual_seed(0)
    points, series, before, after = trained(Llama(WIDTH, depth=3, keys=2), ids(), tmp_path)

    mlp = [["layers.1.mlp.w1.weight", "layers.1.mlp.w3.weight"], ["layers.1.mlp.w2.weight"]]
    check(points, "layers.1.mlp.w2", expected(mlp, before, after, depth=3, alpha=1.0))
    attn = [["layers.1.self_attn.v_proj.weight"], ["layers.1.self_attn.o_proj.weight"]]
    check(points, "layers.1.self_attn.o_proj", expected(attn, before, after, depth=3, alpha=1.0))
    assert {series["branch.product", m, None].bound for m in ("layers.1.mlp.w2", "layers.1.self_attn.o_proj")} == {
        "exact"
    }

    q, k = "layers.1.self_attn.q_proj.weight", "layers.1.self_attn.k_proj.weight"
    d, scale = WIDTH // 4, 4 / WIDTH
    norms = {n: (operator_norm(after[n]), operator_norm(after[n] - before[n])) for n in (q, k)}
    wanted = (
        norms[q][0] * norms[k][0],
        max(norms[q][1] * norms[k][0], norms[q][0] * norms[k][1]),
        norms[q][1] * norms[k][1],
    )
    for metric, value in zip(PAIR, wanted, strict=True):
        assert points[metric, "layers.1.self_attn", None] == pytest.approx(scale * d * value, rel=TOLERANCE)


def test_the_values_in_a_fused_projection_are_bounded_from_above(tmp_path):
    torch.manual_seed(0)
    model = Gpt2(WIDTH)
    for p in model.parameters():
        p.data.mul_(0.1)
    points, series, before, after = trained(model, ids(), tmp_path)

    name, out = "h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight"
    turned = [{n: tensors[n].t() for n in (name, out)} for tensors in (before, after)]
    check(points, "h.0.attn.c_proj", expected([[name], [out]], *turned, depth=2, alpha=1.0, rows={name: WIDTH}))
    values = operator_norm(after[name].t()[-WIDTH:]) * operator_norm(after[out].t())
    assert points["branch.product", "h.0.attn.c_proj", None] >= 2 * values
    assert series["branch.product", "h.0.attn.c_proj", None].bound == "upper"


def test_each_expert_has_products_of_its_own(tmp_path):
    torch.manual_seed(0)
    points, _, before, after = trained(Llama(WIDTH, mlp=Mixture), ids(), tmp_path)

    up, down = "layers.0.mlp.experts.up_proj", "layers.0.mlp.experts.down_proj"
    for expert in range(3):
        tensors = [{n: side[n][expert] for n in (up, down)} for side in (before, after)]
        product, first, second = expected([[up], [down]], *tensors, depth=2, alpha=1.0)
        assert points["branch.product", "layers.0.mlp", expert] == pytest.approx(product, rel=TOLERANCE)
        assert points["branch.second_order", "layers.0.mlp", expert] == pytest.approx(second, rel=TOLERANCE)
        assert points["branch.first_order", up, expert] == pytest.approx(first[up], rel=TOLERANCE)


def test_a_resnets_block_has_its_two_convolutions_and_an_alpha_that_its_norm_hides(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    points, series, before, after = trained(ResNet(), images, tmp_path)

    pair = [["layers.0.conv1.weight"], ["layers.0.conv2.weight"]]
    check(points, "layers.0.conv2", expected(pair, before, after, depth=2, alpha=1.0))
    assert series["branch.product", "layers.0.conv2", None].bound == "upper"


def test_one_matrix_is_held_against_the_root_of_the_depth_with_the_alpha_that_its_block_has(tmp_path):
    torch.manual_seed(0)
    points, _, before, after = trained(Stack(Single, WIDTH, 4), ids(), tmp_path)

    check(points, "layers.2.lin", expected([["layers.2.lin.weight"]], before, after, depth=4, alpha=0.25))


@pytest.mark.parametrize("by", ["code", "hook"])
def test_the_alpha_of_a_branch_is_read_from_hooks_and_measured_where_code_multiplies(tmp_path, by):
    torch.manual_seed(0)
    model = Stack(lambda width: Depth(width, 0.25 if by == "code" else 1.0), WIDTH, 4)
    if by == "hook":
        for layer in model.layers:
            multiply(layer.attn.o_proj, 0.25)
            multiply(layer.mlp.w2, 0.25)
    points, series, before, after = trained(model, ids(), tmp_path)

    mlp = [["layers.1.mlp.w1.weight", "layers.1.mlp.w3.weight"], ["layers.1.mlp.w2.weight"]]
    wanted = expected(mlp, before, after, depth=4, alpha=0.25)
    check(points, "layers.1.mlp.w2", wanted, tolerance=MEASURED if by == "code" else TOLERANCE)
    assert series["branch.product", "layers.1.mlp.w2", None].bound == "exact"


def test_what_products_are_made_of_is_measured_where_they_alone_are_wanted(tmp_path):
    torch.manual_seed(0)
    points, _, before, after = trained(Stack(Single, WIDTH, 4), ids(), tmp_path, metrics=["branch.product"])

    product, _, _ = expected([["layers.2.lin.weight"]], before, after, depth=4, alpha=0.25)
    assert points["branch.product", "layers.2.lin", None] == pytest.approx(product, rel=TOLERANCE)
    assert not any(metric in ("branch.first_order", "update.operator_norm") for metric, *_ in points)


def test_without_their_metrics_nothing_is_worked_out(tmp_path):
    points, _, _, _ = trained(Stack(Single, WIDTH, 4), ids(), tmp_path, metrics=["weight.operator_norm"])

    assert {metric for metric, *_ in points if not metric.startswith("monitor")} == {"weight.operator_norm"}


def test_a_weight_that_is_nan_makes_its_products_nan(tmp_path):
    torch.manual_seed(0)
    model = Stack(Single, WIDTH, 4)
    poisoned = copy.deepcopy(model)
    poisoned.layers[1].lin.weight.data[0, 0] = math.nan
    points, _, _, _ = trained(poisoned, ids(), tmp_path)

    assert math.isnan(points["branch.product", "layers.1.lin", None])
