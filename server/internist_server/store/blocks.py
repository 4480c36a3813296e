"""Blocks of frames, and of judgements, whose values lie in tiles: what they hold beside them, and which there are.

The heads of a block are arrays over its frames (judgements), each packed, with the size of each before it in four
bytes: whole numbers as differences, floats as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from internist_server.store.merge import Ids, Mask
from internist_server.store.tables import BlockRow, JudgedBlockRow, JudgedTileRow, TileRow
from internist_server.values.planes import pack, unpack

BLOCK: Final = 256
"""Frames, or judgements, of a whole block: points of one tile."""
_IDS_A_QUERY: Final = 500
Floats64 = NDArray[np.float64]


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
    query = select(BlockRow.id, BlockRow.rank, BlockRow.plan, BlockRow.count.label("size"), BlockRow.heads).where(
        BlockRow.attempt_id == attempt_id, BlockRow.last_step >= first, BlockRow.first_step <= last
    )
    if plans is not None:
        query = query.where(BlockRow.plan.in_(plans))
    rows = session.execute(query.order_by(BlockRow.id)).all()
    heads = unpack_heads([row.heads for row in rows], [row.size for row in rows], 4, ["?", "?"])
    return [Block(row.id, row.rank, row.plan, *arrays) for row, arrays in zip(rows, heads, strict=True)]  # type: ignore[arg-type]


def list_judged_blocks(session: Session, attempt_id: int, *, first: int, last: int) -> list[JudgedBlock]:
    """The blocks of an attempt's judgements that have some of these steps, in their order."""
    query = select(JudgedBlockRow.id, JudgedBlockRow.count.label("size"), JudgedBlockRow.heads).where(
        JudgedBlockRow.attempt_id == attempt_id, JudgedBlockRow.last_step >= first, JudgedBlockRow.first_step <= last
    )
    rows = session.execute(query.order_by(JudgedBlockRow.first_step)).all()
    heads = unpack_heads([row.heads for row in rows], [row.size for row in rows], 3, ["<f8", "<f8"])
    return [JudgedBlock(row.id, *arrays) for row, arrays in zip(rows, heads, strict=True)]  # type: ignore[arg-type]


def read_tiles(
    session: Session, blocks: Sequence[Block], series: Sequence[int]
) -> dict[int, tuple[Ids, NDArray[np.float32]]]:
    """By block: ids of those of these series that it has tiles of, and their values, (series, frames)."""
    counts = {block.id: len(block.steps) for block in blocks}
    found: dict[int, list[tuple[int, bytes]]] = {}
    for begin in range(0, len(blocks), _IDS_A_QUERY):
        ids = [block.id for block in blocks[begin : begin + _IDS_A_QUERY]]
        for low in range(0, len(series), _IDS_A_QUERY):
            query = select(TileRow.block_id, TileRow.series_id, TileRow.values).where(
                TileRow.block_id.in_(ids), TileRow.series_id.in_(series[low : low + _IDS_A_QUERY])
            )
            for block_id, series_id, values in session.execute(query):
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
            query = select(
                JudgedTileRow.block_id, JudgedTileRow.series_id, JudgedTileRow.ratios, JudgedTileRow.basis
            ).where(JudgedTileRow.block_id.in_(ids), JudgedTileRow.series_id.in_(series[low : low + _IDS_A_QUERY]))
            for block_id, series_id, of_series, basis in session.execute(query):
                ratios.setdefault(block_id, []).append((series_id, of_series))
                bases.setdefault(block_id, []).append((series_id, basis))
    unpacked, of_bases = _unpacked(ratios, counts, "<f2"), _unpacked(bases, counts, "u1")
    return {one: (ids, found, of_bases[one][1]) for one, (ids, found) in unpacked.items()}  # type: ignore[misc]


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
