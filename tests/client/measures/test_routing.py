"""How a router shares tokens among experts: cases by hand, a slow reference, bounds, and what is no number."""

import math

import pytest
import torch

from internist.measures.routing import entropy, largest_logits, loads

ROUNDING = 1e-5
"""Sums of float32 over a few tokens and experts."""


def test_loads_are_shares_of_the_tokens():
    chosen = torch.tensor([[0, 2], [0, 1], [0, 2], [2, 0]])

    assert loads(chosen, 4).tolist() == [1.0, 0.25, 0.75, 0.0]
    assert loads(chosen[:0], 4).tolist() == [0.0] * 4


def test_experts_are_those_of_the_largest_logits():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 5.0]])

    assert largest_logits(logits, 1).tolist() == [[1], [2]]
    assert largest_logits(logits, 2).sort(-1).values.tolist() == [[1, 2], [0, 2]]
    with pytest.raises(ValueError, match="1 to 3 experts, got 4"):
        largest_logits(logits, 4)


def test_entropy_is_that_of_the_definition():
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 3
    p = logits.double().softmax(-1)
    defined = -(p * p.log()).sum(-1).mean().item() / math.log(8)

    assert entropy(logits).item() == pytest.approx(defined, rel=ROUNDING)
    assert entropy(logits + 100.0).item() == pytest.approx(defined, rel=ROUNDING * 10)


def test_entropy_is_one_of_experts_alike_and_zero_of_one_that_is_certain():
    assert entropy(torch.full((5, 4), 7.0)).item() == pytest.approx(1.0, rel=ROUNDING)
    assert entropy(torch.tensor([[0.0, 1e4, -torch.inf]])).item() == 0.0
    assert math.isnan(entropy(torch.tensor([[0.0, torch.nan]])).item())
    with pytest.raises(ValueError, match="two experts or more, got 1"):
        entropy(torch.zeros(3, 1))
