"""What the small models learn: English bytes, noisy images of ten shapes, and the classes that a fixed network sees.

Each source gives (inputs, targets) of any size from a generator, without end.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.faults.others import FEATURES
from benchmarks.faults.transformers import CONTEXT
from internist.demo.model import batch, text

Batch = tuple[Tensor, Tensor]
Source = Callable[[int, torch.Generator], Batch]
NOISE = 0.7
"""Of images and features: with it no model becomes perfect within a run."""
_FIXED = 20260101


def read_bytes(size: int, generator: torch.Generator) -> Batch:
    """(size, CONTEXT) bytes and the bytes that follow them."""
    return batch(_text(), size, CONTEXT, generator)


def draw_images(size: int, generator: torch.Generator) -> Batch:
    """(size, 3, 16, 16) images: one of ten smooth shapes, shifted, under noise."""
    labels = torch.randint(10, (size,), generator=generator)
    shifts = torch.randint(16, (size, 2), generator=generator).tolist()
    shapes = _shapes()
    clean = [shapes[label].roll(shift, (1, 2)) for label, shift in zip(labels.tolist(), shifts, strict=True)]
    return torch.stack(clean) + NOISE * torch.randn(size, 3, 16, 16, generator=generator), labels


def ask_teacher(size: int, generator: torch.Generator) -> Batch:
    """(size, FEATURES) normal features and the class that a fixed random network gives them, one in ten at random."""
    first, second = _teacher()
    x = torch.randn(size, FEATURES, generator=generator)
    labels = (torch.tanh(x @ first) @ second).argmax(1)
    others = torch.randint(10, (size,), generator=generator)
    return x, torch.where(torch.rand(size, generator=generator) < 0.1, others, labels)


@cache
def _text() -> Tensor:
    return text()


@cache
def _shapes() -> Tensor:
    coarse = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(_FIXED))
    return functional.interpolate(coarse, size=16, mode="bilinear")


@cache
def _teacher() -> Batch:
    generator = torch.Generator().manual_seed(_FIXED)
    return torch.randn(FEATURES, 64, generator=generator) / FEATURES**0.5, torch.randn(64, 10, generator=generator)
