"""How much of the database a run fills, and how it goes: its tiles in pieces, so that others may write in between."""

from typing import Any, Final

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from internist.schema.views import Usage
from internist_server.store.attempts import require_run
from internist_server.store.tables import AttemptRow, BandRow, FrameRow, JudgementRow, RunRow
from internist_server.store.tile_tables import BlockRow, BundleRow, JudgedBlockRow, JudgedBundleRow, SummaryRow

BLOCKS_AT_ONCE: Final = 32
"""Blocks that one transaction deletes."""


def read_usage(session: Session, run: str) -> Usage:
    """Bytes of a run's points and judgements, without the database's own overhead.

    Raises:
        RunNotFound: there is no such run.
    """
    require_run(session, run)
    attempts = _attempts(run)
    blocks = select(BlockRow.id).where(BlockRow.attempt_id.in_(attempts))
    judged = select(JudgedBlockRow.id).where(JudgedBlockRow.attempt_id.in_(attempts))
    frames = _bytes(session, FrameRow.attempt_id.in_(attempts), FrameRow.values)
    tiles = _bytes(session, BundleRow.block_id.in_(blocks), BundleRow.tiles)
    tiles += _bytes(session, BlockRow.attempt_id.in_(attempts), BlockRow.heads)
    judgements = _bytes(session, JudgementRow.attempt_id.in_(attempts), JudgementRow.packed)
    judgements += _bytes(session, JudgedBundleRow.block_id.in_(judged), JudgedBundleRow.tiles)
    judgements += _bytes(session, JudgedBlockRow.attempt_id.in_(attempts), JudgedBlockRow.heads)
    judgements += _bytes(session, BandRow.attempt_id.in_(attempts), BandRow.bands)
    spans = _bytes(session, SummaryRow.attempt_id.in_(attempts), SummaryRow.spans)
    return Usage(run, frames, tiles, judgements, spans, frames + tiles + judgements + spans)


def delete_blocks(session: Session, run: str) -> int:
    """Delete some of a run's blocks with their tiles; how many, 0: it has none."""
    deleted = 0
    for table in (BlockRow, JudgedBlockRow):
        query = select(table.id).where(table.attempt_id.in_(_attempts(run))).limit(BLOCKS_AT_ONCE)
        ids = list(session.scalars(query))
        if ids:
            session.execute(delete(table).where(table.id.in_(ids)))
        deleted += len(ids)
    return deleted


def delete_run(session: Session, run: str) -> None:
    """Delete a run with all that is left of it."""
    session.execute(delete(RunRow).where(RunRow.id == run))


def _attempts(run: str) -> Select[int]:
    return select(AttemptRow.id).where(AttemptRow.run_id == run)


def _bytes(session: Session, where: Any, *columns: "InstrumentedAttribute[bytes]") -> int:
    lengths = [func.coalesce(func.sum(func.length(column)), 0) for column in columns]
    return int(sum(session.execute(select(*lengths).where(where)).one()))
