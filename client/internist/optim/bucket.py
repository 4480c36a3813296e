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
    """Whether a bucket has room for more matrices: on a CPU, while they stay in its cache, and only if none moves those
    after it off a boundary; elsewhere always."""
    if weight.device.type != "cpu":
        return True
    if not is_even(weight.shape[1:]):
        return False
    return sum(held.numel() for held in bucket.weights) + weight.numel() <= CACHED_ENTRIES


def learning_rate(group: Group) -> float | Tensor:
    """A group's rate: a number, or the 0-d tensor it was given as where reading it would wait for a device."""
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor) and lr.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(lr)
    return lr
