"""A bucket: equal-shaped matrices of one group that are stepped together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from internist.optim.alignment import is_even
from internist.optim.coefficients import arithmetic_dtype
from internist.optim.parts import CACHED_ENTRIES

Group = dict[str, Any]

STACK_BYTES = 2**28
"""Bytes of weights that one stack holds at most; a larger matrix is one alone. A step's temporaries are a few times
that, and at a quarter of a gigabyte an accelerator multiplies as fast as it can."""


@dataclass(slots=True, eq=False)
class Bucket:
    """Equal-shaped matrices of one group, stepped together: piece i is matrices of parameter `params[i]`."""

    group: Group
    params: list[Tensor]
    weights: list[Tensor]
    """Per piece (count, fan_out, fan_in), a view of the parameter; in a flat bucket the parameter itself."""
    gradients: list[Tensor]
    momenta: list[Tensor]
    offsets: list[int]
    """Per piece the index of its first matrix among those of its parameter."""
    stacked: bool = False
    """Whether they are stepped as one stack, by few operators (`stack`): so on accelerators."""
    accumulated: bool = False
    """Whether this step's gradients are in the momenta already,"""
    decayed: bool = False
    """and its weight decay is in the weights."""

    @property
    def is_flat(self) -> bool:
        """Whether every piece is one matrix (fan_out, fan_in): a parameter, of which no view is made."""
        return self.stacked and self.weights[0].ndim == 2

    @property
    def fan_out(self) -> int:
        """Rows of each matrix."""
        return self.weights[0].shape[-2]

    @property
    def fan_in(self) -> int:
        """Columns of each matrix."""
        return self.weights[0].shape[-1]

    @property
    def counts(self) -> list[int]:
        """Matrices per piece."""
        return [1] * len(self.weights) if self.is_flat else [weight.shape[0] for weight in self.weights]

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
        """(sum of counts, fan_out, fan_in) cut into one part per piece, of that piece's shape."""
        if self.is_flat:
            return matrices.unbind(0)
        return [matrices] if len(self.weights) == 1 else torch.split(matrices, self.counts)

    def joined(self, pieces: Sequence[Tensor]) -> Tensor:
        """(sum of counts, fan_out, fan_in) of one part per piece: a view where there is one piece, else a copy."""
        if self.is_flat:
            return pieces[0].unsqueeze(0) if len(pieces) == 1 else torch.stack(list(pieces))
        return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def fits(bucket: Bucket, weight: Tensor, *, stack_bytes: int = STACK_BYTES) -> bool:
    """Whether a bucket has room for more matrices: a stack, while it stays below that many bytes; on a CPU, while they
    stay in its cache, and only if none moves those after it off a boundary."""
    entries = sum(held.numel() for held in bucket.weights) + weight.numel()
    if bucket.stacked:
        return entries * weight.element_size() <= stack_bytes
    return is_even(weight.shape[1:]) and entries <= CACHED_ENTRIES


def learning_rate(group: Group) -> float | Tensor:
    """A group's rate: a number, or the 0-d tensor it was given as where reading it would wait for a device."""
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor) and lr.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(lr)
    return lr
