"""Planned models trained for a few steps: what changes with width and depth under the rules, and what without them."""

import math

import pytest
import torch
from torch.nn import functional

from internist.mup import plan
from internist.optim.muon import Muon

from .mup_models import Llama, ResidualMlp, ids

WIDTHS = (32, 64, 128, 256)
STEPS = 4
FLAT = 0.25
"""Of a slope over four small widths and a few seeds; the smallest mistake makes a slope of a half."""


def slope(sizes, values):
    xs, ys = [math.log(s) for s in sizes], [math.log(v) for v in values]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def changes(model, optimizer, batch, targets):
    """RMS of the change of (the head's input, the logits) by a few steps on one batch."""
    seen = []
    head = model.lm_head if hasattr(model, "lm_head") else model.leave
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    before = model(batch).detach()
    for _ in range(STEPS):
        loss = functional.cross_entropy(model(batch).flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model(batch).detach()
    hook.remove()
    return tuple(float((b - a).square().mean().sqrt()) for a, b in ((seen[0], seen[-1]), (before, after)))


def trained(size, optimizer, parametrization, seed):
    torch.manual_seed(seed)
    model = Llama(size, 2)
    groups = plan(model, base=(WIDTHS[0], 2), optimizer=optimizer, lr=0.02, parametrization=parametrization).apply()
    made = Muon(groups, dtype=torch.float32) if optimizer.startswith("muon") else torch.optim.AdamW(groups)
    return changes(model, made, ids(4, 8), ids(4, 8, seed=1))


def width_slopes(optimizer, parametrization):
    found = [[trained(width, optimizer, parametrization, seed) for seed in range(3)] for width in WIDTHS]
    return [slope(WIDTHS, [sum(run[i] for run in runs) for runs in found]) for i in (0, 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muon_kimi", "muon_mup"])
def test_features_and_logits_change_alike_at_every_width(optimizer):
    features, logits = width_slopes(optimizer, "mup")

    assert abs(features) < FLAT
    assert abs(logits) < FLAT


@pytest.mark.parametrize("optimizer", ["adamw", "muon_kimi"])
def test_they_grow_with_width_where_nothing_is_scaled(optimizer):
    assert max(width_slopes(optimizer, "standard")) > FLAT


@pytest.mark.parametrize("k", [1, 2])
def test_a_stream_without_norms_changes_alike_at_every_depth(k):
    depths = (2, 4, 8, 16, 32)

    def change(depth, seed):
        torch.manual_seed(seed)
        model = ResidualMlp(64, depth, k=k)
        made = torch.optim.AdamW(plan(model, base=(64, 2), optimizer="adamw", lr=2e-3).apply())
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
        return changes(model, made, x, torch.arange(16) % 3)[0]

    assert abs(slope(depths, [sum(change(depth, seed) for seed in range(3)) for depth in depths])) < FLAT
