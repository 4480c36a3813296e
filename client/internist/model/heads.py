"""Attention's heads in the rows of a projection: which rows make which head, and whether they do."""

from dataclasses import dataclass

import torch
from torch import Tensor

_AGREEING = 0.95
"""Share of head norms that must agree; of other rows next to none do."""


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Rows of one weight: seen as (groups, rows / groups), of each group `per` heads of `size` rows from `first`."""

    projection: int
    groups: int
    first: int
    per: int
    size: int
    power: float
    """They scale with this power of the head's gamma."""

    def spread(self, gamma: Tensor, factor: Tensor) -> None:
        """Multiply the factors of these rows, in (rows,) `factor`, by gamma^power of their heads, (heads,)."""
        rows = factor.view(self.groups, -1)[:, self.first : self.first + self.per * self.size]
        rows.view(self.groups, self.per, self.size).mul_(gamma.pow(self.power).view(self.groups, self.per, 1))

    def take(self, output: Tensor) -> Tensor:
        """(..., rows) of a projection's output to (..., heads, size)."""
        rows = output.reshape(*output.shape[:-1], self.groups, -1)[..., self.first : self.first + self.per * self.size]
        return rows.reshape(*output.shape[:-1], self.groups * self.per, self.size)


def makes(rows: HeadRows, output: Tensor, query: Tensor) -> bool | None:
    """Whether these rows of a projection's output are the heads that attention received, by the norms of the heads
    (rotary embeddings keep them). None: the queries are zero or not finite, it cannot be told.

    Args:
        rows: where the heads would be.
        output: (..., rows) of the projection, batch first or, with three dimensions, tokens first.
        query: (..., H, T, D) as attention received it.
    """
    seen = torch.linalg.vector_norm(query.float(), dim=-1).transpose(-1, -2).flatten()
    if not bool(torch.isfinite(seen).all()) or not bool(seen.any()):
        return None
    reduced = torch.finfo(output.dtype).bits < 32 or torch.finfo(query.dtype).bits < 32
    tolerance = (2e-2 if reduced else 1e-3) * seen.amax()
    for ordered in (output, output.transpose(0, 1))[: 2 if output.ndim == 3 else 1]:
        made = torch.linalg.vector_norm(rows.take(ordered).float(), dim=-1).flatten()
        if made.shape == seen.shape and bool(((made - seen).abs() <= tolerance).float().mean() > _AGREEING):
            return True
    return False
