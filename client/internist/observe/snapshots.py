"""Snapshots: copies of parameters as they are before a step, all of them or in rotation under a budget."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from internist.model.outline import Outline, WatchedParameter
from internist.observe.sampling import Due

SNAPSHOT_BYTES = 256 << 20
"""Snapshots of all parameters while they fit in this; beyond, a share of the bytes in rotation of whole blocks."""
SNAPSHOT_SHARE = 0.05


class Snapshots:
    """Keeps and gives back what parameters were before the step under way."""

    def __init__(self, outline: Outline, every: int) -> None:
        self._every = every
        self._rotation = _rotation(outline)
        self._kept: dict[int, Tensor] = {}
        self.pending: dict[int, Tensor] = {}
        """By parameter order: copies from before the step under way."""

    @property
    def turns(self) -> int:
        """Samples in which every parameter has its turn."""
        return len(self._rotation) if self._rotation else 1

    def take(self, parameters: Sequence[WatchedParameter], step: int, due: Due) -> None:
        """Copy those parameters that are due and not copied yet."""
        chosen = [
            (p, tensor)
            for p in parameters
            if p.order not in self.pending and self._in_turn(p, step, due) and (tensor := p.tensor).requires_grad
        ]
        if not chosen:
            return
        targets = []
        for p, tensor in chosen:
            kept = self._kept.get(p.order) if self._rotation is None else None
            if kept is None or not _fits(kept, tensor):
                kept = torch.empty_like(tensor, memory_format=torch.preserve_format, requires_grad=False)
                if self._rotation is None:
                    self._kept[p.order] = kept
            targets.append(kept)
        torch._foreach_copy_(targets, [tensor.detach() for _, tensor in chosen])
        self.pending.update({p.order: kept for (p, _), kept in zip(chosen, targets, strict=True)})

    def forget(self) -> None:
        """Keep no copy any more."""
        self._kept.clear()
        self.pending.clear()

    def reset(self) -> None:
        """Forget the step."""
        self.pending.clear()

    def _in_turn(self, parameter: WatchedParameter, step: int, due: Due) -> bool:
        if self._rotation is None:
            return True
        if due.matrices is not None and "matrix" in parameter.roles and due.owns_matrix(parameter.turn):
            return True
        return parameter.order in self._rotation[(step // self._every) % len(self._rotation)]


def _fits(kept: Tensor, tensor: Tensor) -> bool:
    return kept.shape == tensor.shape and kept.dtype == tensor.dtype and kept.device == tensor.device


def _rotation(outline: Outline) -> list[set[int]] | None:
    """None: everything is copied each time. Else sets of parameter orders, whole blocks, near 5 % of the bytes each."""
    sizes = {p.order: p.tensor.numel() * p.tensor.element_size() for p in _supported(outline)}
    total = sum(sizes.values())
    if total <= SNAPSHOT_BYTES:
        return None
    blocks: dict[str, list[int]] = {}
    for p in _supported(outline):
        blocks.setdefault(p.owner.block or p.owner.name, []).append(p.order)
    groups: list[set[int]] = [set()]
    filled = 0
    for members in blocks.values():
        size = sum(sizes[order] for order in members)
        if groups[-1] and filled + size > total * SNAPSHOT_SHARE:
            groups.append(set())
            filled = 0
        groups[-1].update(members)
        filled += size
    return groups


def _supported(outline: Outline) -> Iterable[WatchedParameter]:
    return (p for p in outline.parameters if not p.unsupported and not p.excluded)
