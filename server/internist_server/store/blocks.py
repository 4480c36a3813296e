"""Blocks of frames, and of judgements, whose values lie in tiles: what they hold beside them, and which there are.

The heads of a block are arrays over its frames (judgements), each packed, with the size of each before it in four
bytes: whole numbers as differences, floats as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from internist_server.store.merge import Ids, Mask
from internist_server.store.tile_tables import BlockRow, JudgedBlockRow, JudgedTileRow, TileRow
from internist_server.values.planes import pack, unpack

BLOCK: Final = 256
"""Frames, or judgements, of a whole block: points of one tile."""
_IDS_A_QUERY: Final = 500
_KEPT: Final = 2_048
"""Blocks whose heads stay unpacked in memory: 10 kB each."""
Floats64 = NDArray[np.float64]
Tiles = dict[int, tuple[Ids, NDArray[np.float32]]]
"""By block: ids of series, and their values, (series, frames)."""
_BLOCK, _TILE = BlockRow.__table__.c, TileRow.__table__.c
_JUDGED, _JUDGED_TILE = JudgedBlockRow.__table__.c, JudgedTileRow.__table__.c
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
_TILES = select(_TILE.block_id, _TILE.series_id, _TILE["values"]).where(
    _TILE.block_id.in_(bindparam("blocks", expanding=True)),
    _TILE.series_id.in_(bindparam("series", expanding=True)),
)
_JUDGED_TILES = select(_JUDGED_TILE.block_id, _JUDGED_TILE.series_id, _JUDGED_TILE.ratios, _JUDGED_TILE.basis).where(
    _JUDGED_TILE.block_id.in_(bindparam("blocks", expanding=True)),
    _JUDGED_TILE.series_id.in_(bindparam("series", expanding=True)),
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


def pack_heads(whole: Sequence[Ids], plain: Sequence[NDArray[np.generic]]) -> bytes:
    """Arrays of one length, whole numbers and others, as `unpack_heads` reads them."""
    packed = [pack(np.diff(one, prepend=np.int64(0))) for one in whole] + [pack(one) for one in plain]
    return b"".join(len(one).to_bytes(4, "little") + one for one in packed)


def unpack_heads(
    heads: Sequence[bytes], counts: Sequence[int], whole: int, dtypes: Sequence[str]
) -> list[list[NDArray[np.generic]]]:
    """Of each block its arrays: so many of whole numbers, then others of these types."""
    kinds = ["<i8"] * whole + list(dtypes)
    found: list[list[NDArray[np.generic]]] = [[] for _ in heads]
    split = [_split(one, len(kinds)) for one in heads]
    for count in set(counts):
        places = [place for place, one in enumerate(counts) if one == count]
        for at, kind in enumerate(kinds):
            arrays = unpack([split[place][at] for place in places], count, kind)
            arrays = arrays.cumsum(axis=1) if at < whole else arrays
            for place, array in zip(places, arrays, strict=True):
                found[place].append(array)
    return found


def list_blocks(
    session: Session, attempt_id: int, *, first: int, last: int, plans: Sequence[int] | None = None
) -> list[Block]:
    """The blocks of an attempt that may have frames of these steps, in the order in which they were made."""
    found = session.execute(_BLOCKS, {"attempt": attempt_id, "first": first, "last": last})
    rows = [row for row in found if plans is None or row.plan in plans]
    return [Block(row.id, row.rank, row.plan, *_heads(row.heads, row.size, 4, ("?", "?"))) for row in rows]  # type: ignore[arg-type]


def list_judged_blocks(session: Session, attempt_id: int, *, first: int, last: int) -> list[JudgedBlock]:
    """The blocks of an attempt's judgements that have some of these steps, in their order."""
    rows = session.execute(_JUDGED_BLOCKS, {"attempt": attempt_id, "first": first, "last": last})
    return [JudgedBlock(row.id, *_heads(row.heads, row.size, 3, ("<f8", "<f8"))) for row in rows]  # type: ignore[arg-type]


def read_tiles(session: Session, blocks: Sequence[Block], series: Sequence[int]) -> Tiles:
    """By block: ids of those of these series that it has tiles of, and their values, (series, frames)."""
    counts = {block.id: len(block.steps) for block in blocks}
    found: dict[int, list[tuple[int, bytes]]] = {}
    for begin in range(0, len(blocks), _IDS_A_QUERY):
        ids = [block.id for block in blocks[begin : begin + _IDS_A_QUERY]]
        for low in range(0, len(series), _IDS_A_QUERY):
            asked = {"blocks": ids, "series": series[low : low + _IDS_A_QUERY]}
            for block_id, series_id, values in session.execute(_TILES, asked):
                found.setdefault(block_id, []).append((series_id, values))
    return _unpacked(found, counts, "<f4")  # type: ignore[return-value]


def read_judged_tiles(
    session: Session, blocks: Sequence[JudgedBlock], series: Sequence[int]
) -> dict[int, tuple[Ids, NDArray[np.float16], NDArray[np.uint8]]]:
    """By block: ids of those of these series that it has tiles of, their ratios and bases, (series, judgements)."""
    counts = {block.id: len(block.steps) for block in blocks}
    ratios: dict[int, list[tuple[int, bytes]]] = {}
    bases: dict[int, list[tuple[int, bytes]]] = {}
    for begin in range(0, len(blocks), _IDS_A_QUERY):
        ids = [block.id for block in blocks[begin : begin + _IDS_A_QUERY]]
        for low in range(0, len(series), _IDS_A_QUERY):
            asked = {"blocks": ids, "series": series[low : low + _IDS_A_QUERY]}
            for block_id, series_id, of_series, basis in session.execute(_JUDGED_TILES, asked):
                ratios.setdefault(block_id, []).append((series_id, of_series))
                bases.setdefault(block_id, []).append((series_id, basis))
    unpacked, of_bases = _unpacked(ratios, counts, "<f2"), _unpacked(bases, counts, "u1")
    return {one: (ids, found, of_bases[one][1]) for one, (ids, found) in unpacked.items()}  # type: ignore[misc]


@lru_cache(maxsize=_KEPT)
def _heads(heads: bytes, count: int, whole: int, dtypes: tuple[str, ...]) -> tuple[NDArray[np.generic], ...]:
    """The arrays of one block: what is read of a run looks at all of its blocks."""
    arrays = unpack_heads([heads], [count], whole, dtypes)[0]
    for array in arrays:
        array.flags.writeable = False
    return tuple(arrays)


def _unpacked(
    found: dict[int, list[tuple[int, bytes]]], counts: dict[int, int], dtype: str
) -> dict[int, tuple[Ids, NDArray[np.generic]]]:
    """Tiles of blocks that are as long are unpacked together."""
    unpacked: dict[int, tuple[Ids, NDArray[np.generic]]] = {}
    for count in {counts[one] for one in found}:
        ids = [one for one in found if counts[one] == count]
        values = unpack([packed for one in ids for _, packed in found[one]], count, dtype)
        at = 0
        for one in ids:
            size = len(found[one])
            series = np.fromiter((series for series, _ in found[one]), np.int64, size)
            unpacked[one] = series, values[at : at + size]
            at += size
    return unpacked


def _split(heads: bytes, count: int) -> list[bytes]:
    parts, at = [], 0
    for _ in range(count):
        size = int.from_bytes(heads[at : at + 4], "little")
        parts.append(heads[at + 4 : at + 4 + size])
        at += 4 + size
    return parts
