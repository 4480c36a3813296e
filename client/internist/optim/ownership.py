"""Which rank orthogonalises which matrix, and which part of a sharded parameter every rank holds: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement

Slices = tuple[slice, ...]
Run = tuple[int, int]


@dataclass(frozen=True)
class Region:
    """The part of a parameter that one rank holds: its local shape, and where each box of it lies in the whole.

    `boxes` holds (slices of the whole parameter, slices of the local shard); one box, unless a placement interleaves.
    """

    shape: tuple[int, ...]
    boxes: tuple[tuple[Slices, Slices], ...]

    @property
    def size(self) -> int:
        """Number of elements; 0 for a rank that holds nothing."""
        return torch.Size(self.shape).numel()

    def place(self, shard: Tensor, whole: Tensor) -> None:
        """Copy the shard (of `shape`) to where it belongs in the whole parameter."""
        for outer, inner in self.boxes:
            whole[outer].copy_(shard[inner])

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's part of the whole parameter, of `shape`; a view of it if it is one box."""
        if len(self.boxes) == 1:
            return whole[self.boxes[0][0]]
        shard = whole.new_empty(self.shape)
        for outer, inner in self.boxes:
            shard[inner].copy_(whole[outer])
        return shard


def newton_schulz_cost(rows: int, columns: int) -> int:
    """FLOPs of one Newton-Schulz iteration X <- aX + (bA + cA^2)X with A = XX^T on the short side; 0 if it is empty."""
    short, long = sorted((rows, columns))
    return 2 * short * short * (2 * long + short)


def balanced_owners(costs: Sequence[int], ranks: int) -> list[int]:
    """The owner of each job, by longest processing time first: the next dearest goes to the least loaded rank.

    Deterministic (ties go to the earlier job and the lower rank), so ranks that know the same costs agree without a
    word. The greatest load is at most 4/3 of the least possible (Graham's bound, which a test checks by enumeration).

    Raises:
        ValueError: fewer than one rank.
    """
    if ranks < 1:
        raise ValueError(f"expected at least one rank, got {ranks}")
    loads, owners = [0] * ranks, [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda job: (-costs[job], job)):
        owners[job] = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[owners[job]] += costs[job]
    return owners


def held_regions(shape: Sequence[int], mesh: "DeviceMesh", placements: Sequence["Placement"]) -> dict[int, Region]:
    """The region of every rank of the mesh, by global rank.

    Placements are applied in the order of the mesh's dimensions, as DTensor does: `Shard` of any dimension, uneven and
    empty shards, the interleaved shard of `fully_shard` over tensor parallelism, and `Replicate`.

    Raises:
        ValueError: a placement is partial (a sum not yet taken).
    """
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"expected parameters placed by Shard or Replicate, got {tuple(placements)}")
    axes = [_held(axis, shape, mesh, placements) for axis in range(len(shape))]
    regions: dict[int, Region] = {}
    for coordinate in product(*(range(size) for size in mesh.mesh.shape)):
        runs = [held[tuple(coordinate[dimension] for dimension in sharding)] for sharding, held in axes]
        regions[int(mesh.mesh[coordinate])] = _region(runs)
    return regions


def replicated_region(shape: Sequence[int]) -> Region:
    """The region of a rank that holds everything."""
    return _region([[(0, size)] if size else [] for size in shape])


def _held(
    axis: int, shape: Sequence[int], mesh: "DeviceMesh", placements: Sequence["Placement"]
) -> tuple[list[int], dict[tuple[int, ...], list[Run]]]:
    """The mesh's dimensions that shard one dimension of the parameter, and by the coordinate in those what is held."""
    sharding = [dim for dim, placement in enumerate(placements) if getattr(placement, "dim", None) == axis]
    index = torch.arange(shape[axis]).view([-1 if axis == other else 1 for other in range(len(shape))])
    parts: dict[tuple[int, ...], Tensor] = {(): index}
    for dim in sharding:
        # DTensor's own splitting is the definition; a copy of it would miss its next kind of shard.
        split: Any = placements[dim]._split_tensor  # type: ignore[attr-defined]
        parts = {
            (*coordinate, place): part
            for coordinate, whole in parts.items()
            for place, part in enumerate(split(whole, mesh.size(dim), with_padding=False, contiguous=False)[0])
        }
    return sharding, {coordinate: _runs(part.flatten().tolist()) for coordinate, part in parts.items()}


def _runs(indices: Sequence[int]) -> list[Run]:
    """Maximal runs of consecutive indices, as (start, stop)."""
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(indices)) if b != a + 1), len(indices)]
    return [(indices[a], indices[b - 1] + 1) for a, b in pairwise(breaks) if b > a]


def _region(runs: Sequence[Sequence[Run]]) -> Region:
    """The region that is the product of the runs along each dimension."""
    axes = []
    for axis in runs:
        offset, slices = 0, []
        for start, stop in axis:
            slices.append((slice(start, stop), slice(offset, offset + stop - start)))
            offset += stop - start
        axes.append(slices)
    boxes = tuple((tuple(o for o, _ in box), tuple(i for _, i in box)) for box in product(*axes))
    return Region(tuple(sum(stop - start for start, stop in axis) for axis in runs), boxes)
