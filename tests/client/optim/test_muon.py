"""Muon: torch.optim.Muon's steps at equal settings, and steps of the length that its rules promise."""

import copy
import inspect
import random

import pytest
import torch
from torch import nn

from internist.optim import Muon
from internist.optim.coefficients import COEFFICIENTS, norm_band

torchs = pytest.importorskip("torch.optim._muon", reason="torch has a Muon from 2.9 on")

FLOAT32 = 1e-5
"""Of entries after five steps of 0.02, against torch's routine with its cast to bfloat16 taken out."""

BFLOAT16 = 0.03
"""Of the way that five steps go: two roundings of one iteration in bfloat16, each 1 to 2 % off."""

ARITHMETIC = 0.02
"""Room beside a band for rounding in bfloat16."""

SHAPES = [(96, 32), (32, 96), (48, 48), (1, 16), (16, 1), (300, 1200)]


def weights():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in SHAPES]


def steps_of(optimizer, params, steps=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in params]


@pytest.fixture
def torch_in_float32(monkeypatch):
    """torch's own iteration from its source, with `grad.bfloat16()` made a float32 copy."""
    source = inspect.getsource(torchs._zeropower_via_newtonschulz)
    assert source.count("grad.bfloat16()") == 1
    found = {"torch": torch, "Tensor": torch.Tensor}
    exec(source.replace("grad.bfloat16()", "grad.clone()"), found)
    monkeypatch.setattr(torchs, "_zeropower_via_newtonschulz", found["_zeropower_via_newtonschulz"])


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_float32_steps_are_torchs(torch_in_float32, scale, nesterov, weight_decay):
    options = {"lr": 0.02, "nesterov": nesterov, "weight_decay": weight_decay}
    ours, theirs = weights(), weights()
    got = steps_of(Muon(ours, **options, scale=scale, dtype=torch.float32), ours)
    expected = steps_of(torch.optim.Muon(theirs, **options, adjust_lr_fn=scale), theirs)

    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, atol=FLOAT32, rtol=1e-4)


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_bfloat16_steps_are_torchs(scale):
    ours, theirs = weights(), weights()
    got = steps_of(Muon(ours, lr=0.02, scale=scale, dtype=torch.bfloat16), ours)
    expected = steps_of(torch.optim.Muon(theirs, lr=0.02, adjust_lr_fn=scale), theirs)

    for one, other, start in zip(got, expected, weights(), strict=True):
        assert float((one - other).norm() / (other - start.detach()).norm()) < BFLOAT16


@pytest.mark.parametrize("name", sorted(COEFFICIENTS))
def test_the_norm_of_an_update_is_in_the_band_of_its_set(name):
    random.seed(0)
    for trial in range(20):
        fan_out, fan_in = random.randint(2, 200), random.randint(2, 200)
        weight = nn.Parameter(torch.zeros(fan_out, fan_in))
        weight.grad = torch.randn(fan_out, fan_in, generator=torch.Generator().manual_seed(trial))
        optimizer = Muon([weight], lr=0.1, weight_decay=0.0, scale="spectral_mup", coefficients=name)
        optimizer.step()
        norm = float(torch.linalg.matrix_norm(weight.detach(), 2)) / (0.1 * (fan_out / fan_in) ** 0.5)
        known = norm_band(name, side=min(fan_out, fan_in))

        assert known.low * (1 - ARITHMETIC) <= norm <= known.high * (1 + ARITHMETIC), (fan_out, fan_in)


@pytest.mark.parametrize("shape", [(256, 256), (128, 512), (768, 192)])
def test_the_rms_of_a_moonlight_update_is_that_of_adamw(shape):
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1, weight_decay=0.0, scale="match_rms_adamw").step()

    assert float(weight.detach().square().mean().sqrt()) / 0.1 == pytest.approx(0.2, rel=0.2)


def test_the_dynamic_rule_reads_its_tau_at_every_step():
    weight = nn.Parameter(torch.zeros(16, 64))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0, scale="dynamic", momentum=0.0, dtype=torch.float32)
    norms = []
    for tau in (1.0, 0.0):
        optimizer.param_groups[0]["tau"] = tau
        before = weight.detach().clone()
        weight.grad = torch.eye(16, 64)
        optimizer.step()
        norms.append(float(torch.linalg.matrix_norm(weight.detach() - before, 2)))

    assert norms[1] / norms[0] == pytest.approx(0.5, rel=1e-3)


def test_a_checkpoint_of_torchs_muon_goes_on():
    theirs, ours = weights(), weights()
    torch_muon = torch.optim.Muon(theirs, lr=0.02)
    steps_of(torch_muon, theirs)
    for one, other in zip(ours, theirs, strict=True):
        one.data.copy_(other.data)
    optimizer = Muon(ours, lr=0.5)
    optimizer.load_state_dict(copy.deepcopy(torch_muon.state_dict()))
    start = [parameter.detach().clone() for parameter in ours]
    got, expected = steps_of(optimizer, ours, 2), steps_of(torch_muon, theirs, 2)

    for one, other, before in zip(got, expected, start, strict=True):
        assert float((one - other).norm() / (other - before).norm()) < BFLOAT16


def test_bfloat16_weights_are_stepped():
    weight = nn.Parameter(torch.randn(32, 96, generator=torch.Generator().manual_seed(0)).bfloat16())
    weight.grad = torch.randn(32, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = nn.Parameter(weight.detach().float())
    wide.grad = weight.grad.float()
    Muon([weight], lr=0.5).step()
    Muon([wide], lr=0.5).step()

    assert torch.allclose(weight.float(), wide, atol=0.02)
