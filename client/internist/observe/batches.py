"""A probe out of a call's arguments: one sequence of a micro-batch, whatever the arguments are wrapped in.

Arguments are copied as `copy.deepcopy` copies, so mappings, data classes, named tuples and objects keep their classes
and what two of them share; tensors are replaced by their first row along the batch. Nothing of the user's is written
to.
"""

import copy
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internist.observe.reachable import Place, reachable

WHOLE_BATCH_TOKENS = 4_096
"""A micro-batch that cannot be cut is replayed whole up to this many tokens."""
WHOLE_BATCH_BYTES = 64 << 20
"""And up to this many bytes of tensors."""
FLAT_TOKENS = 128
"""Taken of arguments that are all one-dimensional: a stream of tokens, or rows of a table."""
PROBE_BYTES = 256 << 20
"""A probe of more bytes than this is not taken: its copies would be felt."""
MOST_THINGS = 20_000
"""Arguments that hold more objects than this are not copied."""
DEPTH = 12
"""References followed from an argument to its tensors."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to take a probe: what each tensor and each list of the call is replaced by."""

    how: str
    tensors: dict[int, tuple[int, int]]
    """By the tensor's id: the dimension that is cut, and how much of it stays. Others are taken whole."""
    lists: frozenset[int] = frozenset()
    """Ids of lists of which the first entry stays."""


class Batch:
    """The arguments of one call, and the ways in which a probe can be cut out of them."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], root: nn.Module) -> None:
        """Look at the arguments.

        Raises:
            ValueError: no probe can be taken; the message says why.
        """
        self._arguments: Arguments = tuple(args), dict(kwargs)
        self._places = reachable([("", self._arguments)], depth=DEPTH).places
        own = _arguments_own(self._places)
        _refuse_what_cannot_be_copied(own)
        self._tensors = [place.thing for place in own if place.kind == "tensor"]
        if not any(tensor.dim() for tensor in self._tensors):
            raise ValueError("the forward has no tensor argument to take a probe from")
        self._second = _is_batch_second(root)

    def devices(self) -> set[str]:
        """Kinds of devices the tensors are on, and the host."""
        return {"cpu", *(tensor.device.type for tensor in self._tensors)}

    def cuts(self) -> list[Cut]:
        """Ways to take a probe, the likeliest first; the last may be the whole micro-batch.

        Raises:
            ValueError: there is none.
        """
        found: dict[tuple[Any, ...], Cut] = {}
        for cut in self._candidates():
            found.setdefault((tuple(sorted(cut.tensors.items())), cut.lists), cut)
        if not found:
            shapes = [tuple(tensor.shape) for tensor in self._tensors]
            raise ValueError(
                f"tensors of shapes {shapes[:8]} have no batch dimension in common, and the whole micro-batch has more "
                f"than {WHOLE_BATCH_TOKENS} tokens"
            )
        return list(found.values())

    def take(self, cut: Cut) -> Arguments:
        """Copies of the arguments, cut.

        Raises:
            TypeError: something among them cannot be copied.
            ValueError: they are too large.
        """
        size = sum(_bytes_taken(tensor, cut) for tensor in self._tensors)
        if size > PROBE_BYTES:
            raise ValueError(f"a probe of {size >> 20} MiB is larger than {PROBE_BYTES >> 20} MiB")
        memo = _memo(self._places)
        with torch.no_grad():
            for tensor in self._tensors:
                dim, kept = cut.tensors.get(id(tensor), (0, -1))
                part = tensor.detach() if kept < 0 else tensor.detach().narrow(dim, 0, kept)
                part = part.clone()
                memo[id(tensor)] = part.requires_grad_() if tensor.is_leaf and tensor.requires_grad else part
        for place in self._places:
            if id(place.thing) in cut.lists:
                memo[id(place.thing)] = [copy.deepcopy(place.thing[0], memo)]
        arguments: Arguments = copy.deepcopy(self._arguments, memo)
        return arguments

    def _candidates(self) -> Iterator[Cut]:
        tensors = sorted((t for t in self._tensors if t.dim()), key=_leads)
        lead = tensors[0]
        whole = [Cut("the whole micro-batch", {})] if _is_small(lead, tensors) else []
        if lead.dim() == 1:
            if all(t.dim() == 1 and t.shape == lead.shape for t in tensors):
                yield Cut("the first entries", {id(t): (0, min(FLAT_TOKENS, lead.shape[0])) for t in tensors})
            yield from [*self._by_lists(tensors), *whole]
            return
        first, second = (1, 0) if self._second and lead.dim() == 3 else (0, 1)
        likely = list(self._along(lead, first, tensors))
        yield from likely
        if likely:  # the other dimension is a batch only if nothing else is
            yield from whole
        yield from self._along(lead, second, tensors)
        yield from [*self._by_lists(tensors), *whole]

    def _along(self, lead: Tensor, dim: int, tensors: list[Tensor]) -> Iterator[Cut]:
        """The first row where `lead` has its batch in `dim`, if all other tensors agree."""
        batch = lead.shape[dim]
        if batch == 1 and dim:
            return
        dims: dict[int, int] = {}
        either: dict[int, int] = {}
        for tensor in tensors:
            place = dim if tensor is lead else _batch_dim(tensor, batch, lead, dim)
            if place is None:
                return
            if place >= 0:
                dims[id(tensor)] = place
                if tensor is not lead and tensor.dim() > 1 and tensor.shape[0] == tensor.shape[1] == batch:
                    either[id(tensor)] = 1 - place
        lists = self._lists_of(batch) if batch > 1 else frozenset()
        how = f"the first row along dimension {dim}"
        yield Cut(how, {key: (place, 1) for key, place in dims.items()}, lists)
        if either:
            other = {key: (place, 1) for key, place in {**dims, **either}.items()}
            yield Cut(f"{how}, square arguments along the other", other, lists)

    def _by_lists(self, tensors: list[Tensor]) -> Iterator[Cut]:
        """The first entry of lists that are the batch: images of different sizes, a target for each."""
        inside: dict[int, set[int]] = {}
        for place in self._places:
            if place.kind == "list" and len(place.thing) > 1 and _is_argument(place, self._places):
                inside[id(place.thing)] = {id(p.thing) for p in reachable([("", place.thing)], depth=DEPTH).places}
        lengths = {len(p.thing) for p in self._places if id(p.thing) in inside}
        if len(lengths) != 1:
            return
        (batch,) = lengths
        outside = [t for t in tensors if not any(id(t) in members for members in inside.values())]
        if all(t.shape[0] in (1, batch) for t in outside):
            rows = {id(t): (0, 1) for t in outside if t.shape[0] == batch}
            yield Cut("the first entry of the lists", rows, frozenset(inside))

    def _lists_of(self, batch: int) -> frozenset[int]:
        """Lists beside the tensors with one entry a row: prompts, lengths, names."""
        return frozenset(
            id(place.thing)
            for place in self._places
            if place.kind == "list"
            and len(place.thing) == batch
            and _is_argument(place, self._places)
            and all(isinstance(entry, str | int | float | dict) for entry in place.thing)
            and not any(
                isinstance(v, Tensor) for entry in place.thing if isinstance(entry, dict) for v in entry.values()
            )
        )


def fresh(arguments: Arguments) -> Arguments:
    """The arguments for one forward, which may write to them: copies, what cannot change shared."""
    copied: Arguments = copy.deepcopy(arguments, _memo(reachable([("", arguments)], depth=DEPTH).places))
    return copied


def _memo(places: list[Place]) -> dict[int, Any]:
    """What `deepcopy` is to use instead of copies of its own: modules as they are, generators in the same state."""
    return {
        id(place.thing): place.thing.clone_state() if place.kind == "torch generator" else place.thing
        for place in places
        if place.kind == "torch generator" or isinstance(place.thing, nn.Module)
    }


def _arguments_own(places: list[Place]) -> list[Place]:
    """Without what belongs to modules and functions among the arguments, which a copy shares."""
    foreign: set[int] = set()
    own: list[Place] = []
    for index, place in enumerate(places):
        if place.parent in foreign or place.kind in ("function", "class") or isinstance(place.thing, nn.Module):
            foreign.add(index)
        else:
            own.append(place)
    return own


def _refuse_what_cannot_be_copied(places: list[Place]) -> None:
    if len(places) > MOST_THINGS:
        raise ValueError(
            f"its arguments hold {len(places)} things, more than {MOST_THINGS}: copying them would be felt"
        )
    for place in places:
        if place.kind == "iterator" or isinstance(place.thing, io.IOBase):
            raise ValueError(f"an argument is a {type(place.thing).__name__}, which a forward uses up")


def _leads(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Token ids before other tensors, those that are broadcast and one-dimensional ones last: what tells the batch size
    soonest."""
    is_ids = tensor.dim() == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool
    return tensor.dim() == 1, tensor.shape[0] == 1, not is_ids


def _batch_dim(tensor: Tensor, batch: int, lead: Tensor, lead_dim: int) -> int | None:
    """Where a tensor has the batch; -1: it has none and is taken whole; None: it cannot belong to this batch.

    Integers may index what is cut, and an index beyond the end ends a process on a GPU: they are taken whole only where
    they cannot point into the batch.
    """
    shape = tuple(tensor.shape)
    if tensor.dim() == 1:
        if shape[0] == batch:
            return 0
        return -1 if tensor.is_floating_point() or shape[0] == 1 or shape[0] in lead.shape else None
    if tensor.dim() > 2 and shape[1:3] == tuple(lead.shape[:2]) and shape[1] == batch:
        return 1  # a stack of what the leading tensor has once: position ids (3, batch, sequence)
    if tensor.dim() == lead.dim() == 2:
        if shape[lead_dim] == batch:
            return lead_dim
    elif batch in shape[:2]:
        return shape.index(batch)
    if shape[0] == 1:
        return -1
    holds_values = tensor.is_floating_point() or tensor.dtype == torch.bool
    return -1 if holds_values and tensor.dim() == 2 and shape[0] in lead.shape else None


def _is_batch_second(root: nn.Module) -> bool:
    """Whether the model says that sequences come first, (sequence, batch, features)."""
    return any(vars(module).get("batch_first") is False for module in (root, *root.children()))


def _is_argument(place: Place, places: list[Place]) -> bool:
    """Whether a thing is an argument itself, or an entry of a mapping that is one."""
    steps = 0
    while place.parent >= 0:
        place, steps = places[place.parent], steps + (places[place.parent].kind != "object")
    return steps <= 4


def _bytes_taken(tensor: Tensor, cut: Cut) -> int:
    dim, kept = cut.tensors.get(id(tensor), (0, -1))
    share = 1 if kept < 0 or not tensor.numel() else tensor.shape[dim] // kept
    return tensor.numel() * tensor.element_size() // max(share, 1)


def _is_small(lead: Tensor, tensors: list[Tensor]) -> bool:
    """Whether a micro-batch can be replayed whole."""
    if not lead.is_floating_point():
        tokens = lead.numel()
    else:
        tokens = lead.numel() // max(lead.shape[-1], 1) if lead.dim() > 2 else lead.shape[0]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(tokens, *(tensor.shape[0] for tensor in tensors)) <= WHOLE_BATCH_TOKENS and size <= WHOLE_BATCH_BYTES
