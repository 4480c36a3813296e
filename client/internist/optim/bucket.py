"""A bucket: equal-shaped matrices of one group that are stepped together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from internist.optim.orthogonalize import arithmetic_dtype

Group = dict[str, Any]

CACHED_ENTRIES = 2**16
"""Entries that a CPU works on at once: four float32 tensors of them stay in a cache of 1 MiB."""


@dataclass(slots=True, eq=False)
class Bucket:
    """Equal-shaped matrices of one group, stepped together: piece i is matrices of parameter `params[i]`."""

    group: Group
    params: list[Tensor]
    weights: list[Tensor]
    """Per piece (count, fan_out, fan_in), a view of the parameter."""
    gradients: list[Tensor]
    momenta: list[Tensor]
    offsets: list[int]
    """Per piece the index of its first matrix among those of its parameter."""

    @property
    def fan_out(self) -> int:
        """Rows of each matrix."""
        return self.weights[0].shape[1]

    @property
    def fan_in(self) -> int:
        """Columns of each matrix."""
        return self.weights[0].shape[2]

    @property
    def counts(self) -> list[int]:
        """Matrices per piece."""
        return [weight.shape[0] for weight in self.weights]

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.weights[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic's: the group's, else float64 for float64 weights, else what suits the device."""
        dtype: torch.dtype | None = self.group["dtype"]
        if dtype is None and self.weights[0].dtype == torch.float64:
            return torch.float64
        return dtype or arithmetic_dtype(self.device)

    def pieces(self, matrices: Tensor) -> Sequence[Tensor]:
        """(sum of counts, fan_out, fan_in) cut into one part per piece."""
        return [matrices] if len(self.weights) == 1 else torch.split(matrices, self.counts)


def fits(bucket: Bucket, weight: Tensor) -> bool:
    """Whether a bucket has room for more matrices: on a CPU, while they stay in its cache; elsewhere always."""
    if weight.device.type != "cpu":
        return True
    return sum(held.numel() for held in bucket.weights) + weight.numel() <= CACHED_ENTRIES


def cached_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, cut alike along their leading dimensions into views that a cache holds."""
    first = tensors[0]
    if first.numel() <= CACHED_ENTRIES or first.ndim < 2:
        yield tensors
        return
    rows = CACHED_ENTRIES * first.shape[0] // first.numel()
    if rows > 1:
        parts = -(-len(first) // rows)
        yield from zip(*(tensor.chunk(parts) for tensor in tensors), strict=True)
        return
    for slices in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
        yield from cached_parts(*slices)


def direction_shares(mu: float, *, nesterov: bool) -> tuple[float, float]:
    """What a direction has of the gradient and of the momentum it just changed."""
    return (1.0 - mu, mu) if nesterov else (0.0, 1.0)


def learning_rate(group: Group) -> float | Tensor:
    """A group's rate: a number, or the 0-d tensor it was given as where reading it would wait for a device."""
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor) and lr.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(lr)
    return lr
