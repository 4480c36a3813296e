"""What is measured in few launches off the CPU is what is measured tensor by tensor on it.

Here the former runs on CPU tensors; `test_parameter_launches.py` counts what it launches.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import internist
from internist.measures import many, spectral_stacks
from internist.observe import own_batches, spectra_batches
from tests.client.points import read

ROUNDING = 1e-4
"""Float32 sums in another order, and differences of values that are squared and rooted on the way."""
ESTIMATE = 0.01
"""Spectral norms of matrices above 256, from below in both ways, and what is divided by them."""

WIDTH = 16


class Experts(nn.Module):
    """Two matrices in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, WIDTH, WIDTH + 4) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bti,eio->beto", x, self.w).sum((1, 3))[..., None] * x


class Zoo(nn.Module):
    """Parameters of every kind: tied, transposed, stacked, grouped, without a bias, in low precision."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(40, WIDTH), nn.Embedding(12, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 300), nn.GELU(), nn.Linear(300, 300), nn.Linear(300, WIDTH)
            )
            for _ in range(3)
        )
        self.conv = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1, groups=4)
        self.mix, self.experts = nn.Linear(2 * WIDTH, WIDTH, bias=False), Experts()
        self.mix.weight = nn.Parameter(torch.randn(2 * WIDTH, WIDTH).div(6).t())  # not contiguous
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = x + block(x)
        x = self.mix(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.head(self.norm(self.experts(x)))


@pytest.fixture
def at_once(monkeypatch):
    """CPU tensors are measured as those of a device on which launches are the cost."""
    monkeypatch.setattr(many, "pays", lambda _: True)


def poison(step, model):
    """One weight of one matrix is no number after the third step."""
    if step == 2:
        model.blocks[1][3].weight.grad[0, 0] = torch.nan


def trained(directory, *, steps=3, change=None, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = Zoo().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = internist.watch(model, optimizer, mode="offline", directory=directory, max_overhead=0, **options)
    ids = torch.randint(0, 40, (4, 12))
    for step in range(steps):
        functional.cross_entropy(model(ids).flatten(0, 1).float(), ids.flatten()).backward()
        if change is not None:
            change(step, model)
        optimizer.step()
        optimizer.zero_grad()
    problems = {e.subject for e in monitor.coverage() if e.state == "unsupported" and e.family != "update.own"}
    monitor.finish()
    points, series, _ = read(monitor.directory)
    return points, series, problems


def kept(points):
    """What comes of parameters."""
    own = {k: v for k, v in points.items() if k[0].partition(".")[0] in ("weight", "update", "gradient")}
    return {k: v for k, v in own.items() if not k[0].startswith("update.feature")}


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for key, own in expected.items():
        tolerance = 2 * ESTIMATE if key[0].endswith(("_norm", "rank", "relative")) else ROUNDING
        assert found[key].keys() == own.keys(), key
        for step, value in own.items():
            same = math.isnan(value) and math.isnan(found[key][step])
            assert same or found[key][step] == pytest.approx(value, rel=tolerance, abs=1e-6), (key, step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_value_of_a_parameter_is_the_same_whether_measured_at_once_or_one_by_one(tmp_path, monkeypatch, dtype):
    expected, _, _ = trained(tmp_path / "alone", dtype=dtype)
    monkeypatch.setattr(many, "pays", lambda _: True)
    found, series, problems = trained(tmp_path / "together", dtype=dtype)

    assert_alike(kept(found), kept(expected))
    assert not problems
    methods = {(s.subject, s.facts.method) for s in series.values() if s.metric == "weight.spectral_norm"}
    assert ("blocks.0.3.weight", "gram-1024") in methods
    assert ("blocks.0.1.weight", "gram") in methods


def test_large_matrices_start_from_what_was_found_before(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(spectral_stacks, "SQUARED_UP_TO", 256)
    reduce_, methods = spectral_stacks.reduce_, []
    monkeypatch.setattr(
        spectral_stacks,
        "reduce_",
        lambda stack, start=None: methods.append((found := reduce_(stack, start=start)).method) or found,
    )

    trained(tmp_path)
    large = [method for method in methods if method != "gram"]
    assert large == ["krylov-8x10"] * 2 + ["krylov-8x9", "krylov-8x10"] * 2  # weights, their changes; step by step


def test_byte_budgets_cut_stacks_and_change_nothing(tmp_path, monkeypatch, at_once):
    expected, _, _ = trained(tmp_path / "whole")
    for module, name in (
        (own_batches, "STACK_BYTES"),
        (spectra_batches, "STACK_BYTES"),
        (spectra_batches, "SMALL_BYTES"),
    ):
        monkeypatch.setattr(module, name, 1)

    assert_alike(kept(trained(tmp_path / "cut")[0]), kept(expected))


def test_a_matrix_that_is_not_a_number_spoils_none_of_its_neighbours(tmp_path, at_once):
    points, _, problems = trained(tmp_path, change=poison)

    norms = {subject: own[2] for (metric, subject, _), own in points.items() if metric == "weight.spectral_norm"}
    assert {subject for subject, norm in norms.items() if not math.isfinite(norm)} == {"blocks.1.3.weight"}
    assert len(norms) > 10
    assert not problems


def test_a_matrix_that_cannot_be_measured_costs_itself_alone(tmp_path, monkeypatch, at_once):
    reduce_ = spectral_stacks.reduce_

    def refuse(stack, *, start=None):
        if stack.isnan().any():
            raise RuntimeError("out of memory")
        return reduce_(stack, start=start)

    monkeypatch.setattr(spectral_stacks, "reduce_", refuse)
    points, _, _ = trained(tmp_path, change=poison)
    steps = {subject: list(own) for (metric, subject, _), own in points.items() if metric == "weight.spectral_norm"}
    assert steps.pop("blocks.1.3.weight") == [0, 1]
    assert all(measured == [0, 1, 2] for measured in steps.values())


@pytest.mark.parametrize("metric", ["weight.rms", "weight.head_norm", "weight.spectral_norm", "gradient.rms", "loss"])
def test_no_snapshot_is_taken_where_no_update_is_wanted(tmp_path, monkeypatch, metric):
    copies = []
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda targets, sources: copies.append(copy(targets, sources)))

    points, _, problems = trained(tmp_path, metrics=[metric])
    assert not copies
    assert not problems
    assert {name for name, _, _ in points if not name.startswith("monitor.")} == {metric}


@pytest.mark.parametrize("metric", ["update.rms", "update.own", "update.spectral_norm", "update.relative"])
def test_one_update_metric_is_measured_alone(tmp_path, at_once, metric):
    expected = trained(tmp_path / "all")[0]

    points = trained(tmp_path / "one", metrics=[metric])[0]
    assert_alike(kept(points), {key: own for key, own in kept(expected).items() if key[0] == metric})
