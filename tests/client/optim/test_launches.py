"""What a step launches on an accelerator, counted without one: fake tensors say they are on it, and raise when read."""

from collections import Counter
from functools import cache

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from internist.optim import retraction
from internist.optim.muon import Muon
from internist.optim.muon_plus_plus import MuonPlusPlus
from internist.optim.muon_sphere import MuonSphere

GPT2_SHAPES = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
LAYERS = 12
SETTLED = 2
"""Steps before the one that is counted: state is made, and what is kept between steps."""

MUON, MUON_PLUS_PLUS = 150, 240
"""Bars for the 48 matrices of GPT-2 124M."""

ROUND = 470
"""A step that ends with a round of retraction; at the defaults every fourth does."""

OTHERS = {("cap", 100): 1700, ("decay", 100): 260, ("none", 100): 240}
"""Of the policy that estimates something every step, a Krylov iteration for each of the four shapes; and of others."""
AUDIT = 1800
"""What an audit adds under any policy, every hundredth step by default."""


class Launches(TorchDispatchMode):
    """Counts what torch is told to do: operators and views; not the questions that only fake tensors ask."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "aten":
            self.counted[operator.name()] += 1
        return operator(*args, **(kwargs or {}))


def launches(kind, shapes=GPT2_SHAPES, layers=LAYERS, *, diagnosed=False, **options):
    """What one settled step launches."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = [
            torch.nn.Parameter(torch.empty(shape, device="cuda"), requires_grad=False)
            for _ in range(layers)
            for shape in shapes
        ]
        optimizer = kind(weights, **{"dtype": torch.bfloat16} | options)
        for step in range(SETTLED + 1):
            for weight in weights:
                weight.grad = torch.empty_like(weight)
            if diagnosed and step == SETTLED:
                optimizer.request_diagnostics()
            with Launches() as launched:
                optimizer.step()
    return launched.counted.total()


@cache
def plus_plus(policy, audit_every):
    return launches(MuonPlusPlus, policy=policy, audit_every=audit_every)


def test_fake_tensors_raise_when_they_are_read():
    with FakeTensorMode():
        numbers = torch.ones(2, device="cuda")
        for read in (lambda: numbers.sum().item(), lambda: bool(numbers.any()), numbers.tolist):
            with pytest.raises(DataDependentOutputException):
                read()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"weight_decay": 0.0}], ids=str)
def test_muon_steps_48_matrices_by_150_operators(dtype, options):
    assert launches(Muon, dtype=dtype, **options) <= MUON


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_muon_plus_plus_steps_48_matrices_by_240_operators(dtype):
    own_steps = len(GPT2_SHAPES)  # numbers of the host's that are read, where they are numbers

    assert launches(MuonPlusPlus, dtype=dtype) + own_steps <= MUON_PLUS_PLUS


def test_a_round_of_retraction_reads_nothing_and_is_rare_enough_for_a_mean_of_240(monkeypatch):
    plain = launches(MuonPlusPlus)
    monkeypatch.setattr(retraction, "MOST_STEPS", 1)
    ended = launches(MuonPlusPlus)
    steps = int(retraction.ROOM * 2.0 / 0.01)

    assert plain < ended <= ROUND
    assert (ended + (steps - 1) * plain) / steps <= MUON_PLUS_PLUS


@pytest.mark.parametrize(("policy", "audit_every"), OTHERS)
def test_other_policies_launch_what_they_estimate_and_no_more(policy, audit_every):
    assert plus_plus(policy, audit_every) <= OTHERS[policy, audit_every]


@pytest.mark.parametrize("policy", ["decay", "cap", "retract", "none"])
def test_an_audit_reads_nothing_and_launches_no_more_than_its_estimate(policy):
    before = ROUND if policy == "retract" else plus_plus(policy, 100)  # it also ends with a round

    assert plus_plus(policy, 1) <= before + AUDIT


@pytest.mark.parametrize("policy", ["decay", "cap", "retract", "none"])
def test_more_matrices_of_a_shape_launch_no_more(policy):
    shapes = [(512, 256)]

    few, many = (launches(MuonPlusPlus, shapes, layers, policy=policy, audit_every=1) for layers in (2, 24))

    assert many == few


def test_a_stack_over_its_budget_is_two():
    class Frugal(Muon):
        stack_bytes = 6 * 512 * 256 * 4

    shapes = [(512, 256)]

    assert launches(Muon, shapes, 12) < launches(Frugal, shapes, 12) <= 2 * launches(Muon, shapes, 12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MuonPlusPlus, {"adaptive": True}),
        (MuonPlusPlus, {"policy": "cap", "adaptive": True}),
        (MuonPlusPlus, {"maximize": True, "nesterov": False}),
        (Muon, {"maximize": True}),
        (Muon, {"row_blocks": 12}),
        (Muon, {"layout": "in_out"}),
    ],
    ids=str,
)
def test_no_option_reads_an_accelerator(kind, options):
    own = {key: options[key] for key in ("row_blocks", "layout") if key in options}

    def made(weights, **rest):
        return kind([{"params": weights, **own}], **rest)

    assert launches(made, [(96, 48)], 4, **{key: value for key, value in options.items() if key not in own})


@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
def test_diagnostics_read_nothing(kind):
    assert launches(kind, [(96, 48), (48, 96)], 4, diagnosed=True)


@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
@pytest.mark.parametrize("shape", [(4, 96, 48), (32, 8, 3, 3), (1, 64), (64, 1)], ids=str)
def test_no_shape_reads_an_accelerator(kind, shape):
    assert launches(kind, [shape], 3, **({"audit_every": 1} if kind is MuonPlusPlus else {}))


def test_a_learning_rate_on_the_accelerator_is_not_read():
    def made(weights, **options):
        lr = torch.full((), 0.01, device="cuda")
        optimizer = Muon(weights, **options)
        optimizer.param_groups[0]["lr"] = lr
        return optimizer

    assert launches(made) <= MUON + 3 * len(GPT2_SHAPES)


def test_muon_sphere_retracts_a_stack_at_once():
    def made(weights, **options):
        sphere = MuonSphere([{"params": [], "algorithm": "muon"}], **options)
        sphere.param_groups[0]["params"] = weights  # adding them would rescale them, and look at them
        return sphere

    few, many = (launches(made, [(96, 48)], layers) for layers in (2, 24))

    assert many == few
