"""A run made longer by copies of its own blocks: minutes where the same frames over the wire take hours.

What lies in tiles is copied row by row with later steps, moments and sequence numbers, and its rank and judge are told
that they have come so far. Bands are not copied: the last one holds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, literal, select, update
from sqlalchemy.orm import Session

from internist_server.store.blocks import (
    ARRAYS,
    JUDGED_ARRAYS,
    pack_heads,
    series_of,
    unpack_heads,
    unpack_whole,
)
from internist_server.store.database import Database
from internist_server.store.summaries import APART
from internist_server.store.tables import JudgeStateRow, RankRow, StandingRow
from internist_server.store.tile_tables import BlockRow, BundleRow, JudgedBlockRow, JudgedBundleRow, SummaryRow

Row = dict[str, Any]


def lengthen(database: Database, attempt_id: int, *, steps: int, every: int, step_ms: int) -> int:
    """Copy the blocks of an attempt of one rank and one plan until so many measured steps have come; how many have.

    Args:
        every: steps between two of them.
        step_ms: time of a step.
    """
    with database.read() as session:
        tables = (BlockRow, JudgedBlockRow, SummaryRow)
        blocks, judged, summaries = (_rows(session, table, attempt_id) for table in tables)
        rank = session.get_one(RankRow, (attempt_id, blocks[0]["rank"]))
        reached, taken = rank.last_step // every + 1, rank.delivered[-1][1] + 1
        period = sum(block["count"] for block in blocks)
        plans = dict(rank.plan_steps or {})
    laps = max(0, -(-(steps - reached) // period))
    for lap in range(laps):
        by = (reached + lap * period) * every
        sequence = taken + lap * period
        with database.write() as session:
            for block in blocks:
                heads = _moved(block, 4, ("?", "?"), by=(by, by * step_ms, by * step_ms), sequence=sequence)
                sequence += block["count"]
                newer = {"newest_ms": block["newest_ms"] + by * step_ms}
                _copy(session, BlockRow, BundleRow, block | newer, heads, by=by)
            for block in judged:
                _copy(
                    session, JudgedBlockRow, JudgedBundleRow, block, _moved(block, 3, ("<f8", "<f8"), by=(by,)), by=by
                )
            session.execute(insert(SummaryRow), [_summary(row, by=by, by_ms=by * step_ms) for row in summaries])
    done = reached + laps * period
    last = (done - 1) * every
    with database.write() as session:
        is_rank = (RankRow.attempt_id == attempt_id) & (RankRow.rank == blocks[0]["rank"])
        come = {"last_step": last, "sampled_step": last, "delivered": [[0, taken + laps * period - 1]]}
        session.execute(update(RankRow).where(is_rank).values(plan_steps=dict.fromkeys(plans, last), **come))
        judged_now = {"judged_step": last, "version": JudgeStateRow.version + 1}
        session.execute(update(JudgeStateRow).where(JudgeStateRow.attempt_id == attempt_id).values(**judged_now))
        session.execute(update(StandingRow).values(cursor=StandingRow.cursor + 1))  # what is in memory is of before
    return done


def _rows(session: Session, table: Any, attempt_id: int) -> list[Row]:
    found = session.execute(select(table.__table__).where(table.attempt_id == attempt_id).order_by(table.id))
    return [dict(row) for row in found.mappings()]


def _moved(block: Row, whole: int, plain: Sequence[str], *, by: Sequence[int], sequence: int | None = None) -> bytes:
    """The heads of a block whose first arrays are larger by so much, and whose frames have other sequence numbers."""
    arrays: list[NDArray[Any]] = list(unpack_heads([block["heads"]], [block["count"]], whole, plain)[0])
    for at, distance in enumerate(by):
        arrays[at] = arrays[at] + distance
    if sequence is not None:
        arrays[3] = np.arange(sequence, sequence + block["count"], dtype=np.int64)
    series = series_of(block["heads"], ARRAYS if whole == 4 else JUDGED_ARRAYS)
    return pack_heads(arrays[:whole], arrays[whole:], series=series)


def _copy(session: Session, blocks: Any, bundles: Any, block: Row, heads: bytes, *, by: int) -> None:
    """A block that is later by so many steps, with these heads and all tiles."""
    kept = {name: value for name, value in block.items() if name != "id"}
    later = {name: block[name] + by for name in ("first_step", "last_step")}
    made = session.execute(insert(blocks).values(**kept | later | {"heads": heads}).returning(blocks.id)).scalar_one()
    tiles = select(literal(made), bundles.place, bundles.tiles).where(bundles.block_id == block["id"])
    session.execute(insert(bundles).from_select(["block_id", "place", "tiles"], tiles))


def _summary(row: Row, *, by: int, by_ms: int) -> Row:
    """Spans that are later."""
    size = int.from_bytes(row["spans"][:4], "little") & ~APART
    steps, times = unpack_whole(row["spans"][4 : 4 + size], row["count"], 2)
    head = pack_heads([steps + by, times + by_ms], [])
    later = {name: row[name] + by for name in ("first_step", "last_step")}
    spans = (len(head) | APART).to_bytes(4, "little") + head + row["spans"][4 + size :]
    return {name: value for name, value in row.items() if name != "id"} | later | {"spans": spans}
