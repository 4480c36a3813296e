"""Probe tokens on an accelerator: gathered by one launch into memory that is used again at every sample, and compared
with one another by a few operators for all modules together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from internist.measures import formats
from internist.observe.streams import Stream
from internist.observe.tokens import at_positions, owned, positions

POOL_BYTES = 32 << 20
"""A page of a pool has no more places than fit, but one at least."""
FIRST_PLACES = 16
"""Places of a page before a sample has told how many are needed."""
UNUSED_SAMPLES = 3
"""A pool that so many samples have not used is given back."""


class Kind(NamedTuple):
    """Which probe tokens share a pool."""

    stream: Stream
    dtype: torch.dtype
    tokens: int
    features: int


class Pool:
    """Places of (tokens, features) each, in pages."""

    def __init__(self, kind: Kind, places: int) -> None:
        self.kind = kind
        size = kind.tokens * kind.features * kind.dtype.itemsize
        most = max(1, POOL_BYTES // size)
        self.capacity = min(places, most)
        self.is_full_grown = self.capacity == most
        self._pages: list[tuple[Tensor, list[Tensor]]] = []
        self._wholes: dict[int, Tensor] = {}
        self._used = 0
        self.unused = 0
        """Samples since it was last used."""

    @property
    def used(self) -> int:
        """Places that this step has used."""
        return self._used

    @property
    def is_full(self) -> bool:
        """Whether another place would be on another page."""
        return self._used > 0 and self._used % self.capacity == 0

    def place(self) -> Tensor:
        """(tokens, features) the next place; `advance` makes it used."""
        page, place = divmod(self._used, self.capacity)
        if len(self._pages) <= page:
            shape = self.capacity, self.kind.tokens, self.kind.features
            with torch.inference_mode(mode=False):
                memory = torch.empty(shape, dtype=self.kind.dtype, device=self.kind.stream.device)
            self._pages.append((memory, []))
        memory, places = self._pages[page]
        while len(places) <= place:
            places.append(memory[len(places)])
        return places[place]

    def advance(self) -> int:
        """The place that was filled is used; its number."""
        self._used += 1
        return self._used - 1

    def whole(self) -> Tensor:
        """(used, tokens, features) the places of the first page that are used."""
        memory, used = self._pages[0][0], min(self._used, self.capacity)
        if used == self.capacity:
            return memory
        found = self._wholes.get(used)
        if found is None:
            self._wholes.clear()
            found = self._wholes[used] = memory[:used]
        return found

    def begin(self) -> None:
        """All places are free again."""
        self._used = 0


@dataclass(slots=True)
class Pools:
    """The pools of a device."""

    _pools: dict[Kind, Pool] = field(default_factory=dict)

    def pool(self, x: Tensor, axis: int, most: int, stream: Stream) -> Pool:
        """The pool of a tensor's probe tokens."""
        features = x.shape[axis]
        kind = Kind(stream, x.dtype, min(x.numel() // features, most), features)
        found = self._pools.get(kind)
        if found is None:
            found = self._pools[kind] = Pool(kind, FIRST_PLACES)
        return found

    def used(self) -> list[Pool]:
        """Those that this step has used."""
        return [pool for pool in self._pools.values() if pool.used]

    def begin(self, taken: dict[Kind, int] | None = None) -> None:
        """A step begins. Pools become as large as the last one would have needed; those long unused are given back.

        Args:
            taken: places that were used by kind, where a pool was emptied on the way.
        """
        for kind, pool in list(self._pools.items()):
            used = (taken or {}).get(kind, 0) + pool.used
            pool.unused = 0 if used else pool.unused + 1
            if pool.unused >= UNUSED_SAMPLES:
                del self._pools[kind]
            elif used > pool.capacity and not pool.is_full_grown:
                self._pools[kind] = Pool(kind, used)
            else:
                pool.begin()

    def forget(self) -> None:
        """Give all memory back."""
        self._pools.clear()


class Distances:
    """Between the probe tokens of many tensors, and the range of their entries: each is kept once, and all are looked
    at when the step ends.

    Args:
        distances: whether distances are wanted.
        ranges: whether ranges are.
    """

    def __init__(self, *, distances: bool = True, ranges: bool = False) -> None:
        self._wants_distances, self._wants_ranges = distances, ranges
        self._pools = Pools()
        self._taken: dict[Kind, int] = {}
        self._found: dict[int, list[Tensor]] = {}
        """By number of tokens: (tensors, pairs and mirrored pairs) of each pool that was emptied."""
        self._rows: dict[int, list[tuple[Kind, int]]] = {}
        """By number of tokens: which place of which kind each row is of."""
        self._shares: list[Tensor] = []
        """(4, tensors) of each pool that was emptied,"""
        self._places: list[tuple[Kind, int]] = []
        """and which place of which kind each column is of."""

    def keep(self, x: Tensor, axis: int, most: int, stream: Stream) -> tuple[Kind, int]:
        """Keep a tensor's probe tokens; where, among all of its kind."""
        pool = self._pools.pool(x, axis, most, stream)
        if pool.is_full:
            self._empty(pool)
        gather(x, axis, most, pool.place())
        return pool.kind, self._taken.get(pool.kind, 0) + pool.advance()

    def of(self, chosen: Sequence[tuple[Kind, int]]) -> Tensor:
        """(chosen, pairs) the distances of all pairs of each one's tokens, as `measures.activations.pair_distances`
        gives them; all have equally many."""
        for pool in self._pools.used():
            self._empty(pool)
        kind = chosen[0][0]
        rows = {where: row for row, where in enumerate(self._rows[kind.tokens])}
        found = self._found[kind.tokens]
        every = found[0] if len(found) == 1 else torch.cat(found)
        pairs = every.index_select(1, _pairs(kind.tokens, kind.stream.device))
        return pairs.index_select(0, index_of(tuple(rows[where] for where in chosen), kind.stream.device))

    def ranges(self, chosen: Sequence[tuple[Kind, int]]) -> Tensor:
        """(4, chosen) shares of each one's entries, as `measures.formats.shares` gives them; of formats that have a
        next narrower one."""
        for pool in self._pools.used():
            self._empty(pool)
        columns = {where: column for column, where in enumerate(self._places)}
        every = self._shares[0] if len(self._shares) == 1 else torch.cat(self._shares, dim=1)
        return every.index_select(1, index_of(tuple(columns[where] for where in chosen), chosen[0][0].stream.device))

    def begin(self) -> None:
        """A step begins: nothing is kept of the last one."""
        self._found.clear()
        self._rows.clear()
        self._shares.clear()
        self._places.clear()
        self._pools.begin(self._taken)
        self._taken.clear()

    def forget(self) -> None:
        """Give all memory back."""
        self.begin()
        self._pools.forget()

    def _empty(self, pool: Pool) -> None:
        kind, taken = pool.kind, self._taken.get(pool.kind, 0)
        tokens = pool.whole()
        where = [(kind, taken + place) for place in range(pool.used)]
        if self._wants_ranges and formats.is_known(kind.dtype):
            self._shares.append(formats.shares(tokens.view(pool.used, -1)))
            self._places += where
        if self._wants_distances:
            wide = tokens if tokens.dtype == torch.float32 else tokens.float()
            # explicit differences, without a tensor of them: the Gram route loses near-equal tokens
            apart = torch.ops.aten._cdist_forward.default(wide, wide, 2.0, 2)
            self._found.setdefault(kind.tokens, []).append(apart.div_(math.sqrt(kind.features)).view(pool.used, -1))
            self._rows.setdefault(kind.tokens, []).extend(where)
        self._taken[kind] = taken + pool.used
        pool.begin()


def gather(x: Tensor, axis: int, most: int, out: Tensor) -> None:
    """Write a tensor's probe tokens, (at most `most`, features), into `out`: one launch, and no copy of the tensor."""
    if axis not in (-1, x.dim() - 1):
        out.copy_(at_positions(x, axis, most))
    elif x.dim() == 3 and x.stride(0) != x.stride(1) * x.shape[1]:
        torch.ops.aten.index.Tensor_out(x, list(_places(x.shape[0], x.shape[1], x.device, most)), out=out)
    else:
        tokens = x.reshape(-1, x.shape[-1])
        torch.index_select(tokens, 0, positions(tokens.shape[0], x.device, most), out=out)


def picked(x: Tensor, axis: int, most: int) -> Tensor:
    """(at most `most`, features) a tensor's probe tokens, in memory of their own."""
    if axis not in (-1, x.dim() - 1):
        return owned(at_positions(x.detach(), axis, most))
    if x.dim() == 3 and x.stride(0) != x.stride(1) * x.shape[1]:
        return x[_places(x.shape[0], x.shape[1], x.device, most)]
    tokens = x.reshape(-1, x.shape[-1])
    return tokens.index_select(0, positions(tokens.shape[0], x.device, most))


@lru_cache(maxsize=256)
def _places(batch: int, tokens: int, device: torch.device, most: int) -> tuple[Tensor, Tensor]:
    """Sequence and place in the sequence of the probe tokens of a batch."""
    flat = positions(batch * tokens, device, most)
    return flat // tokens, flat % tokens


@lru_cache(maxsize=16)
def _pairs(tokens: int, device: torch.device) -> Tensor:
    """Where (0, 1), (0, 2), ..., (1, 2), ... lie in a (tokens, tokens) matrix."""
    first, second = torch.triu_indices(tokens, tokens, 1, device=device).unbind()
    return first * tokens + second


@lru_cache(maxsize=256)
def index_of(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """These numbers on a device, as an index; a copy that nobody waits for, made once."""
    host = torch.tensor(numbers, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
