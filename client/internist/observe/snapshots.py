"""Snapshots: copies of parameters as they are before a step, all of them or in rotation under a budget."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from internist.measures import many
from internist.model.outline import Outline, WatchedParameter
from internist.observe.sampling import Due, Sampling
from internist.schema.metrics import CATALOGUE

SNAPSHOT_BYTES = 256 << 20
"""Snapshots of all parameters while they fit in this; beyond, a share of the bytes in rotation of whole blocks."""
SNAPSHOT_SHARE = 0.05

PLACE = 64
"""Entries that a copy's place is rounded up to, so that every copy begins where vector loads may."""

_MEASURED = [metric for metric in CATALOGUE if not metric.name.startswith("update.feature")]
LIGHT_WEIGHTS = tuple(m.name for m in _MEASURED if m.family == "weight" and m.cadence == "light")
LIGHT_UPDATES = tuple(m.name for m in _MEASURED if m.family == "update" and m.cadence == "light")
WEIGHT_SPECTRA = tuple(m.name for m in _MEASURED if m.family == "weight" and m.cadence == "matrix_heavy")
UPDATE_SPECTRA = tuple(m.name for m in _MEASURED if m.family == "update" and m.cadence == "matrix_heavy")
"""What is measured of parameters and of their updates: of those whose turn it is, and of matrices that are due."""


class Snapshots:
    """Keeps and gives back what parameters were before the step under way: of those alone of which an update is
    wanted."""

    def __init__(self, outline: Outline, sampling: Sampling) -> None:
        self._every, self._wants = sampling.every, sampling.wants
        self._rotation = _rotation(outline)
        self._kept: dict[int, Tensor] = {}
        self.pending: dict[int, Tensor] = {}
        """By parameter order: copies from before the step under way."""
        self.uncompared: set[int] = set()
        """Orders of parameters that the step under way measures, but not their updates."""

    @property
    def turns(self) -> int:
        """Samples in which every parameter has its turn."""
        return len(self._rotation) if self._rotation else 1

    def take(self, parameters: Sequence[WatchedParameter], step: int, due: Due) -> None:
        """Copy those parameters that are due and not copied yet. The caller has switched gradients off."""
        chosen = []
        for p in parameters:
            wants = self._wanted_of(p, step, due)
            if p.order in self.pending or not wants or not p.tensor.requires_grad or not (tensor := p.local).numel():
                continue
            if self._wants(*wants):
                chosen.append((p, tensor))
            else:
                self.uncompared.add(p.order)
        if not chosen:
            return
        kept = {p.order: self._kept.get(p.order) for p, _ in chosen}
        new = [(p, tensor) for p, tensor in chosen if not _fits(kept[p.order], tensor)]
        fresh = dict(zip((p.order for p, _ in new), _room([tensor for _, tensor in new]), strict=True))
        if self._rotation is None:
            self._kept.update(fresh)
        targets = {p.order: fresh[p.order] if p.order in fresh else self._kept[p.order] for p, _ in chosen}
        torch._foreach_copy_(list(targets.values()), [tensor for _, tensor in chosen])
        self.pending.update(targets)

    def forget(self) -> None:
        """Keep no copy any more."""
        self._kept.clear()
        self.reset()

    def reset(self) -> None:
        """Forget the step."""
        self.pending.clear()
        self.uncompared.clear()

    def _wanted_of(self, parameter: WatchedParameter, step: int, due: Due) -> tuple[str, ...]:
        """Names of the updates that are measured of a parameter if they are wanted; empty where nothing of it is
        due."""
        updates: tuple[str, ...] = ()
        if self._is_its_turn(parameter, step) and self._wants(*LIGHT_WEIGHTS, *LIGHT_UPDATES):
            updates += LIGHT_UPDATES
        may_be_matrix = "matrix" in parameter.roles or parameter.view == "unknown"
        is_due = may_be_matrix and due.owns_matrix(parameter.turn)
        if is_due and self._wants(*WEIGHT_SPECTRA, *UPDATE_SPECTRA):
            updates += UPDATE_SPECTRA
        return updates

    def _is_its_turn(self, parameter: WatchedParameter, step: int) -> bool:
        if self._rotation is None:
            return True
        return parameter.order in self._rotation[(step // self._every) % len(self._rotation)]


def _type_of_copy(tensor: Tensor) -> torch.dtype:
    """float32 where a device's differences are to be written over the copy."""
    return torch.float32 if many.pays(tensor.device) and tensor.dtype in many.NARROW else tensor.dtype


def _fits(kept: Tensor | None, tensor: Tensor) -> bool:
    if kept is None:
        return False
    return kept.shape == tensor.shape and kept.dtype == _type_of_copy(tensor) and kept.device == tensor.device


def _room(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Memory for copies of tensors: where launches are the cost, in one piece for each type."""
    found = {
        i: torch.empty_like(
            tensor, dtype=_type_of_copy(tensor), memory_format=torch.preserve_format, requires_grad=False
        )
        for i, tensor in enumerate(tensors)
        if not (many.pays(tensor.device) and tensor.is_contiguous())
    }
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if i not in found:
            kinds.setdefault((tensor.device, _type_of_copy(tensor)), []).append(i)
    for (device, dtype), members in kinds.items():
        places = [-(-tensors[i].numel() // PLACE) * PLACE for i in members]
        pieces = torch.empty(sum(places), dtype=dtype, device=device).split_with_sizes(places)
        for i, piece in zip(members, pieces, strict=True):
            found[i] = piece[: tensors[i].numel()].view(tensors[i].shape)
    return [found[i] for i in range(len(tensors))]


def _rotation(outline: Outline) -> list[set[int]] | None:
    """None: everything is copied each time. Else sets of parameter orders, whole blocks, near 5 % of the bytes each."""
    sizes = {p.order: p.local.numel() * _type_of_copy(p.local).itemsize for p in _supported(outline)}
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
