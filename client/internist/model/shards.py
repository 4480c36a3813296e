"""Sharded parameters (DTensors): what of one this rank holds, where that lies in it, and which rank tells of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shard:
    """What of a parameter one rank holds.

    Where a mesh dimension replicates, the ranks of its first coordinate tell of the parameter, and the others do not.
    """

    cut: frozenset[int]
    """Dimensions along which the parameter is cut in pieces; none: this rank holds all of it."""
    offset: tuple[int, ...]
    """Where the piece begins in the whole, by dimension."""
    shape: tuple[int, ...]
    """Of the piece."""
    is_first: bool
    """Whether it is the first replica of its piece in the parameter's own mesh."""
    is_first_of_all: bool
    """The same among the ranks of all meshes that the parameter's mesh is a slice of."""

    @property
    def is_empty(self) -> bool:
        """Whether the rank holds nothing of it: there were fewer rows than ranks."""
        return 0 in self.shape


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is laid out over a mesh of ranks."""
    return hasattr(tensor, "placements") and hasattr(tensor, "_local_tensor")


def is_gathered(shown: Tensor, resting: Tensor) -> bool:
    """Whether what a module shows is gathered, for as long as it computes, from what is stored: over all ranks, or over
    those of some dimensions of its mesh."""
    if not is_sharded(shown):
        return True
    return bool(shown.device_mesh.ndim < resting.device_mesh.ndim)  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: of a plain one all."""
    held: Tensor = tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return held


def is_partial(tensor: Tensor) -> bool:
    """Whether a sharded tensor is a sum over ranks that has not been taken yet."""
    return any(placement.is_partial() for placement in tensor.placements)  # type: ignore[attr-defined]


def is_cut(tensor: Tensor) -> bool:
    """Whether a sharded tensor is in pieces, and no rank of its mesh has all of it."""
    return any(getattr(placement, "dim", None) is not None for placement in tensor.placements)  # type: ignore[attr-defined]


def shard_of(tensor: Tensor) -> Shard:
    """How the piece of a sharded tensor that this rank holds lies in the whole."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    placements: Sequence[Any] = tensor.placements  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # a rank outside of the mesh holds nothing
        empty = (0,) * tensor.dim()
        return Shard(frozenset(), empty, empty, is_first=False, is_first_of_all=False)
    cut: set[int] = set()
    is_first = True
    for dim, placement in enumerate(placements):
        if mesh.size(dim) == 1:
            continue
        if getattr(placement, "dim", None) is not None:
            cut.add(placement.dim % tensor.dim())
        elif coordinate[dim]:
            is_first = False
    _, offset = compute_local_shape_and_global_offset(tuple(tensor.shape), mesh, placements)
    return Shard(
        cut=frozenset(cut),
        offset=tuple(map(int, offset)),
        shape=tuple(local(tensor).shape),
        is_first=is_first,
        is_first_of_all=is_first and _is_first_outside(mesh),
    )


def is_of_pipeline(dimension: str) -> bool:
    """Whether a mesh dimension of this name counts stages of a pipeline: ranks along it hold other layers."""
    return dimension.lower().startswith(("pp", "pipe", "stage"))


def ranks_of_model(mesh: Any) -> list[int]:
    """The ranks that hold one model together: all of the mesh that a mesh is a slice of, without the other stages of a
    pipeline."""
    whole = _root(mesh)
    place, names = whole.get_coordinate(), whole.mesh_dim_names
    if place is None or names is None:
        return [int(rank) for rank in mesh.mesh.flatten().tolist()]
    stage = tuple(at if is_of_pipeline(name) else slice(None) for name, at in zip(names, place, strict=True))
    return [int(rank) for rank in whole.mesh[stage].flatten().tolist()]


def _root(mesh: Any) -> Any:
    """The mesh that a mesh is a slice of, else itself."""
    from torch.distributed import device_mesh

    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    resources = getattr(device_mesh, "_mesh_resources", None)  # it kept them before torch 2.10
    return mesh if resources is None else resources.get_root_mesh(mesh)


def _is_first_outside(mesh: Any) -> bool:
    """Whether a mesh is the first of those that the ranks of one model are divided into."""
    return min(ranks_of_model(mesh)) in mesh.mesh.flatten().tolist()


def ranks_of_replica(tensor: Tensor) -> tuple[int, ...]:
    """The ranks that hold all of a sharded tensor together, each part once: those of its first replica in its mesh."""
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    places = tuple(
        slice(None) if getattr(placement, "dim", None) is not None else 0
        for placement in tensor.placements  # type: ignore[attr-defined]
    )
    return tuple(sorted(int(rank) for rank in mesh.mesh[places].flatten().tolist()))


def is_in_one_box(tensor: Tensor) -> bool:
    """Whether the piece that each rank holds of a sharded tensor lies together: none is cut by two of its mesh."""
    cut = [placement.dim for placement in tensor.placements if getattr(placement, "dim", None) is not None]  # type: ignore[attr-defined]
    return len(set(cut)) == len(cut)
