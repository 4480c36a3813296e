"""Blocks of frames, and of judgements, whose values lie in tiles: what they hold beside them, and which there are.

The heads of a block are arrays over its frames (judgements), each packed, with the size of each before it in four
bytes: whole numbers as differences, floats as they are. Behind them stand the ids of the series of its tiles, those of
one metric side by side, so that what shows a metric reads few bundles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from internist_server.store.merge import Ids, Mask
from internist_server.store.tile_tables import BlockRow, BundleRow, JudgedBlockRow, JudgedBundleRow
from internist_server.values.bundles import bundle, pack_ids, unbundle, unpack_ids
from internist_server.values.planes import pack, unpack, unpack_one

BLOCK: Final = 256
"""Frames, or judgements, of a whole block: points of one tile."""
BUNDLE: Final = 32
"""Series whose tiles lie in one row."""
_IDS_A_QUERY: Final = 500
_AT_ONCE: Final = 2_048
"""Tiles that are unpacked together; of fewer those that were unpacked lately are still known."""
ARRAYS, JUDGED_ARRAYS = 6, 5
"""Of heads."""
_KEPT: Final = 2_048
"""Blocks whose heads stay unpacked in memory: 10 kB each."""
Floats64 = NDArray[np.float64]
Tiles = dict[int, tuple[Ids, NDArray[np.float32]]]
"""By block: ids of series, and their values, (series, frames)."""
_BLOCK, _BUNDLE = BlockRow.__table__.c, BundleRow.__table__.c
_JUDGED, _JUDGED_BUNDLE = JudgedBlockRow.__table__.c, JudgedBundleRow.__table__.c
_BLOCKS = (
    select(_BLOCK.id, _BLOCK.rank, _BLOCK.plan, _BLOCK["count"].label("size"), _BLOCK.heads)
    .where(_BLOCK.attempt_id == bindparam("attempt"))
    .where(_BLOCK.last_step >= bindparam("first"), _BLOCK.first_step <= bindparam("last"))
    .order_by(_BLOCK.id)
)
_JUDGED_BLOCKS = (
    select(_JUDGED.id, _JUDGED["count"].label("size"), _JUDGED.heads)
    .where(_JUDGED.attempt_id == bindparam("attempt"))
    .where(_JUDGED.last_step >= bindparam("first"), _JUDGED.first_step <= bindparam("last"))
    .order_by(_JUDGED.first_step)
)
_BUNDLES, _JUDGED_BUNDLES = (
    select(of.block_id, of.place, of.tiles).where(
        of.block_id.in_(bindparam("blocks", expanding=True)), of.place.in_(bindparam("places", expanding=True))
    )
    for of in (_BUNDLE, _JUDGED_BUNDLE)
)


@dataclass(frozen=True, slots=True)
class Block:
    """Frames of a block, without their values."""

    id: int
    rank: int
    plan: int
    steps: Ids
    measured_at_ms: Ids
    received_at_ms: Ids
    sequences: Ids
    skipped: Mask
    late: Mask
    series: Ids
    """Those that it has tiles of, in their order."""


@dataclass(frozen=True, slots=True)
class JudgedBlock:
    """Judgements of a block, without ratios and bases."""

    id: int
    steps: Ids
    delivered: Ids
    expected: Ids
    schedules: Floats64
    divisors: Floats64
    """NaN where none is known."""
    series: Ids
    """Those that it has tiles of, in their order."""


def pack_heads(whole: Sequence[Ids], plain: Sequence[NDArray[np.generic]], *, series: Ids | None = None) -> bytes:
    """Arrays of one length, whole numbers and others, as `unpack_heads` reads them, and ids of series."""
    packed = [pack(np.diff(one, prepend=np.int64(0))) for one in whole] + [pack(one) for one in plain]
    arrays = b"".join(len(one).to_bytes(4, "little") + one for one in packed)
    return arrays if series is None else arrays + pack_ids(series)


def unpack_heads(
    heads: Sequence[bytes], counts: Sequence[int], whole: int, dtypes: Sequence[str]
) -> list[list[NDArray[np.generic]]]:
    """Of each block its arrays: so many of whole numbers, then others of these types."""
    kinds = ["<i8"] * whole + list(dtypes)
    found: list[list[NDArray[np.generic]]] = [[] for _ in heads]
    parts = [split(one, len(kinds)) for one in heads]
    for count in set(counts):
        places = [place for place, one in enumerate(counts) if one == count]
        for at, kind in enumerate(kinds):
            arrays = unpack([parts[place][at] for place in places], count, kind)
            arrays = arrays.cumsum(axis=1) if at < whole else arrays
            for place, array in zip(places, arrays, strict=True):
                found[place].append(array)
    return found


def unpack_whole(heads: bytes, count: int, arrays: int) -> tuple[Ids, ...]:
    """So many arrays of whole numbers, of `count` each."""
    return _heads(heads, count, arrays, ())  # type: ignore[return-value]


def list_blocks(
    session: Session, attempt_id: int, *, first: int, last: int, plans: Sequence[int] | None = None
) -> list[Block]:
    """The blocks of an attempt that may have frames of these steps, in the order in which they were made."""
    found = session.execute(_BLOCKS, {"attempt": attempt_id, "first": first, "last": last})
    rows = [row for row in found if plans is None or row.plan in plans]
    return [_block(row) for row in rows]


def list_judged_blocks(session: Session, attempt_id: int, *, first: int, last: int) -> list[JudgedBlock]:
    """The blocks of an attempt's judgements that have some of these steps, in their order."""
    rows = session.execute(_JUDGED_BLOCKS, {"attempt": attempt_id, "first": first, "last": last})
    return [_judged_block(row) for row in rows]


def bundles_of(tiles: Sequence[bytes], *, parts: int = 1) -> list[bytes]:
    """The bundles of the tiles of a block; `parts`: tiles that each series has."""
    size = BUNDLE * parts
    return [bundle(tiles[begin : begin + size]) for begin in range(0, len(tiles), size)]


def read_tiles(session: Session, blocks: Sequence[Block], series: Sequence[int]) -> Tiles:
    """By block: ids of those of these series that it has tiles of, and their values, (series, frames)."""
    found = _read(session, _BUNDLES, blocks, series)
    counts = {block.id: len(block.steps) for block in blocks}
    values = _unpacked({one: tiles for one, (_, tiles) in found.items()}, counts, "<f4")
    return {one: (ids, values[one]) for one, (ids, _) in found.items()}  # type: ignore[misc]


def read_judged_tiles(
    session: Session, blocks: Sequence[JudgedBlock], series: Sequence[int]
) -> dict[int, tuple[Ids, NDArray[np.float16], NDArray[np.uint8]]]:
    """By block: ids of those of these series that it has tiles of, their ratios and bases, (series, judgements)."""
    found = _read(session, _JUDGED_BUNDLES, blocks, series, parts=2)
    counts = {block.id: len(block.steps) for block in blocks}
    ratios = _unpacked({one: tiles[0::2] for one, (_, tiles) in found.items()}, counts, "<f2")
    bases = _unpacked({one: tiles[1::2] for one, (_, tiles) in found.items()}, counts, "u1")
    return {one: (ids, ratios[one], bases[one]) for one, (ids, _) in found.items()}  # type: ignore[misc]


def series_of(heads: bytes, arrays: int) -> Ids:
    """The ids that stand behind so many arrays."""
    return unpack_ids(heads[end_of_arrays(heads, arrays) :])


def end_of_arrays(heads: bytes, arrays: int) -> int:
    """Where so many arrays end."""
    at = 0
    for _ in range(arrays):
        at += 4 + int.from_bytes(heads[at : at + 4], "little")
    return at


def _read(
    session: Session,
    query: Select[Any],
    blocks: Sequence[Block] | Sequence[JudgedBlock],
    series: Sequence[int],
    *,
    parts: int = 1,
) -> dict[int, tuple[Ids, list[bytes]]]:
    """By block that has tiles of some of these series: their ids, and their tiles, so many of each."""
    wanted = np.asarray(series, np.int64)
    alike: dict[int, list[Block | JudgedBlock]] = {}
    for block in blocks:
        alike.setdefault(id(block.series), []).append(block)  # equal ones are one array
    found: dict[int, tuple[Ids, list[bytes]]] = {}
    for group in alike.values():
        of_group = group[0].series
        places = np.flatnonzero(np.isin(of_group, wanted))
        if not len(places):
            continue
        here: dict[int, dict[int, bytes]] = {}
        of_bundles = np.unique(places // BUNDLE).tolist()
        for begin in range(0, len(group), _IDS_A_QUERY):
            ids = [block.id for block in group[begin : begin + _IDS_A_QUERY]]
            for low in range(0, len(of_bundles), _IDS_A_QUERY):
                asked = {"blocks": ids, "places": of_bundles[low : low + _IDS_A_QUERY]}
                for block_id, place, tiles in session.execute(query, asked):
                    here.setdefault(block_id, {})[place] = tiles
        within = [(place // BUNDLE, place % BUNDLE * parts) for place in places.tolist()]
        for block_id, bundles in here.items():
            opened = {place: unbundle(tiles) for place, tiles in bundles.items()}
            tiles = [opened[place][at + part] for place, at in within for part in range(parts)]
            found[block_id] = of_group[places], tiles
    return found


def _block(row: Any) -> Block:
    arrays: tuple[Any, ...] = (*_heads(row.heads, row.size, 4, ("?", "?")), series_of(row.heads, ARRAYS))
    return Block(row.id, row.rank, row.plan, *arrays)


def _judged_block(row: Any) -> JudgedBlock:
    arrays: tuple[Any, ...] = (*_heads(row.heads, row.size, 3, ("<f8", "<f8")), series_of(row.heads, JUDGED_ARRAYS))
    return JudgedBlock(row.id, *arrays)


@lru_cache(maxsize=_KEPT)
def _heads(heads: bytes, count: int, whole: int, dtypes: tuple[str, ...]) -> tuple[NDArray[np.generic], ...]:
    """The arrays of one block: what is read of a run looks at all of its blocks."""
    arrays = unpack_heads([heads], [count], whole, dtypes)[0]
    for array in arrays:
        array.flags.writeable = False
    return tuple(arrays)


def _unpacked(
    found: Mapping[int, Sequence[bytes]], counts: Mapping[int, int], dtype: str
) -> dict[int, NDArray[np.generic]]:
    """The arrays of the tiles of some blocks, (tiles, items)."""
    if sum(map(len, found.values())) <= _AT_ONCE:
        return {one: np.stack([unpack_one(tile, counts[one], dtype) for tile in found[one]]) for one in found}
    unpacked: dict[int, NDArray[np.generic]] = {}
    for count in {counts[one] for one in found}:  # of blocks that are as long: together
        ids = [one for one in found if counts[one] == count]
        values = unpack([tile for one in ids for tile in found[one]], count, dtype)
        ends = np.cumsum([len(found[one]) for one in ids])
        unpacked.update(zip(ids, np.split(values, ends[:-1]), strict=True))
    return unpacked


def split(heads: bytes, count: int) -> list[bytes]:
    """So many packed arrays, each without its size."""
    parts, at = [], 0
    for _ in range(count):
        size = int.from_bytes(heads[at : at + 4], "little")
        parts.append(heads[at + 4 : at + 4 + size])
        at += 4 + size
    return parts
