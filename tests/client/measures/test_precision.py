"""Measures compute in float32 where the forward around them does not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from internist.measures import activations, attention, spectral, updates


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


OPTIONS = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1}

MEASURES: dict[str, Callable[[], Tensor]] = {
    "max_logits": lambda: attention.max_logits(random(2, 3, 20, 16), random(2, 3, 20, 16).flip(0), is_causal=True),
    "own_linear": lambda: updates.own_linear(random(9, 30), random(20, 30), random(20)),
    "own_convolution": lambda: updates.own_convolution(random(2, 4, 9), random(6, 4, 3), None, **OPTIONS),
    "exact spectral norm": lambda: spectral.spectral_norm(random(40, 30)).norm,
    "Lanczos": lambda: spectral.spectral_norm(random(300, 300)).norm,
    "pair_distances": lambda: activations.pair_distances(random(9, 30)),
    "log_z": lambda: activations.log_z(random(9, 30)),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_autocast_around_a_measure_changes_nothing(measure):
    plain = measure()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(measure(), plain)


def test_autocast_would_change_a_bare_product():
    x = random(20, 20)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
