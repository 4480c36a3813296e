"""What optimizers promise of their updates holds: each one's spectral norm over the learning rate lies in the band."""

import pytest
import torch

from internist.optim.muon import Muon
from internist.optim.muon_plus_plus import MuonPlusPlus

LR = 0.02
STEPS = 6
SHAPES = [(24, 24), (48, 12), (12, 48), (5, 64)]
ROUNDING = 1e-3
"""Relative, of float32 matrix products and of svdvals."""


def updates(optimizer, weight, steps=STEPS, seed=0):
    """Spectral norm over learning rate of each update, decay included."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        before = weight.detach().clone()
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        yield torch.linalg.matrix_norm((weight - before).detach(), 2).item() / LR


def promised(optimizer):
    (row,) = optimizer.describe()
    return row.get("update_scale"), row.get("update_band")


def weight_of(shape):
    torch.manual_seed(1)
    return torch.nn.Parameter(torch.randn(shape) / shape[1] ** 0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["original", "match_rms_adamw", "spectral_mup"])
@pytest.mark.parametrize("coefficients", ["jordan", "polar_express"])
def test_muon_keeps_its_promise(shape, rule, coefficients):
    weight = weight_of(shape)
    optimizer = Muon([weight], lr=LR, weight_decay=0.0, scale=rule, coefficients=coefficients, dtype=torch.float32)
    scale, (low, high) = promised(optimizer)

    for found in updates(optimizer, weight):
        assert low * (1 - ROUNDING) <= found / scale <= high * (1 + ROUNDING)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", ["decay", "none"])
def test_muon_plus_plus_keeps_its_promise(shape, policy):
    weight = weight_of(shape)
    optimizer = MuonPlusPlus([weight], lr=LR, policy=policy, initialize=True, radius=1.5, dtype=torch.float32)
    scale, (low, high) = promised(optimizer)

    for found in updates(optimizer, weight):
        assert low * (1 - ROUNDING) <= found / scale <= high * (1 + ROUNDING)


@pytest.mark.parametrize(
    "make",
    [
        lambda w: Muon([{"params": [w], "row_blocks": 4}]),
        lambda w: Muon([w], scale="dynamic"),
        lambda w: MuonPlusPlus([w]),
        lambda w: MuonPlusPlus([w], initialize=True, policy="cap"),
        lambda w: MuonPlusPlus([w], initialize=True, policy="retract"),
        lambda w: MuonPlusPlus([w], initialize=True, adaptive=True),
        lambda w: Muon([torch.nn.Parameter(w.detach().reshape(4, 6, 24))]),
        lambda w: Muon([{"params": [w], "algorithm": "adamw"}]),
    ],
)
def test_what_cannot_be_known_is_not_promised(make):
    assert promised(make(weight_of((24, 24)))) == (None, None)
