"""Frames and judgements become tiles: a block at a time, each within the caller's transaction.

What is moved is settled: the judge's checkpoint lies behind it, so that no judge will be shown it again, and its rank
has come past it. The newest frames stay as they are: what looks at the last steps finds them in one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from internist_server.store.blocks import BLOCK, pack_heads
from internist_server.store.judgements import Bases, Ratios, load_checkpoint
from internist_server.store.merge import Ids
from internist_server.store.series import NO_SERIES
from internist_server.store.summaries import JudgedSteps, add_summaries
from internist_server.store.tables import AttemptRow, FrameRow, JudgementRow, PlanRow, RankRow
from internist_server.store.tile_tables import BlockRow, JudgedBlockRow, JudgedTileRow, TileRow
from internist_server.values.planes import pack

_OLDEST: Final = 8
"""Times as many of the oldest frames are looked at as a block needs."""
KEPT_LOOSE: Final = 128
"""Of a live attempt, the newest frames of a plan, and judgements, that are not moved."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of how many frames, or judgements, blocks are made, and how many stay loose of a live attempt."""

    block: int = BLOCK
    kept: int = KEPT_LOOSE

    def least(self, *, is_over: bool) -> int:
        """How many there must be for a block."""
        return 2 if is_over else self.block + self.kept


@dataclass(frozen=True, slots=True)
class Loose:
    """A rank of whose frames some may be moved."""

    attempt_id: int
    run: str
    rank: int
    frames: int
    is_over: bool
    """Whether its attempt has ended: then the newest frames are moved, too."""


def list_loose(session: Session, sizes: Sizes) -> list[Loose]:
    """The ranks of whose frames some may be moved."""
    is_over = AttemptRow.finished_at_ms.is_not(None)
    query = (
        select(RankRow.attempt_id, AttemptRow.run_id, RankRow.rank, RankRow.loose, is_over)
        .join(AttemptRow, AttemptRow.id == RankRow.attempt_id)
        .where(or_(RankRow.loose >= sizes.least(is_over=False), is_over & (RankRow.loose > 1)))
    )
    return [Loose(row[0], row[1], row[2], row[3], bool(row[4])) for row in session.execute(query)]


def move_frames(session: Session, loose: Loose, sizes: Sizes) -> int:
    """Move a block of a rank's frames into tiles; how many it has, 0: there is none to make."""
    attempt_id, rank = loose.attempt_id, loose.rank
    of_rank = (FrameRow.attempt_id == attempt_id) & (FrameRow.rank == rank)
    settled = FrameRow.step <= _settled(session, attempt_id, rank)
    number = _plan_to_move(session, of_rank & settled, least=sizes.least(is_over=loose.is_over))
    if number is None:
        return 0
    query = select(FrameRow.__table__).where(of_rank, settled, FrameRow.plan == number)
    frames = session.execute(query.order_by(FrameRow.sequence).limit(sizes.block)).all()
    is_plan = (PlanRow.attempt_id == attempt_id) & (PlanRow.rank == rank) & (PlanRow.number == number)
    series = np.frombuffer(session.scalars(select(PlanRow.series).where(is_plan)).one(), dtype="<i8")
    block = _add_block(session, attempt_id, rank, number, frames)
    values = np.frombuffer(b"".join([frame.values for frame in frames]), "<f4").reshape(len(frames), -1)
    tiles = [
        {"block_id": block.id, "series_id": one, "values": pack(values[:, column])}
        for column, one in enumerate(series.tolist())
        if one != NO_SERIES
    ]
    session.execute(insert(TileRow.__table__), tiles)  # type: ignore[arg-type]
    block.packed_bytes = len(block.heads) + sum(len(tile["values"]) for tile in tiles)
    session.execute(delete(FrameRow).where(of_rank, FrameRow.sequence.in_([frame.sequence for frame in frames])))
    is_it = (RankRow.attempt_id == attempt_id) & (RankRow.rank == rank)
    session.execute(update(RankRow).where(is_it).values(loose=RankRow.loose - len(frames)))
    return len(frames)


def _plan_to_move(session: Session, movable: ColumnElement[bool], *, least: int) -> int | None:
    """A plan of which so many frames may be moved; None without one. It is looked for among the oldest of a rank first:
    after a run was shipped at once there are very many."""
    for oldest in (_OLDEST * least, None):
        frames = select(FrameRow.plan).where(movable).order_by(FrameRow.sequence).limit(oldest).subquery()
        counts = session.execute(
            select(frames.c.plan, func.count()).group_by(frames.c.plan).order_by(frames.c.plan)
        ).all()
        number = next((plan for plan, count in counts if count >= least), None)
        if number is not None or (oldest is not None and sum(count for _, count in counts) < oldest):
            return number
    return None


def move_judgements(session: Session, attempt_id: int, sizes: Sizes, *, is_over: bool) -> int:
    """Move a block of an attempt's judgements into tiles; how many it has, 0: there is none to make."""
    checkpoint = load_checkpoint(session, attempt_id)
    settled = (JudgementRow.attempt_id == attempt_id) & (JudgementRow.step <= checkpoint.step)
    steps = session.scalars(
        select(JudgementRow.step).where(settled).order_by(JudgementRow.step).limit(sizes.block + sizes.kept)
    ).all()
    if len(steps) < sizes.least(is_over=is_over):
        return 0
    moved = settled & (JudgementRow.step <= steps[: sizes.block][-1])
    rows = session.execute(select(JudgementRow.__table__).where(moved).order_by(JudgementRow.step)).all()
    ratios, basis = _unpacked(rows)
    order = checkpoint.order[: ratios.shape[1]]
    before = session.scalar(select(func.max(JudgedBlockRow.last_step)).where(JudgedBlockRow.attempt_id == attempt_id))
    block_id, judged_steps = _add_judged_block(session, attempt_id, rows)
    tiles = _judged_tiles(ratios, basis, order, block_id)
    judged = JudgedSteps(judged_steps, order, ratios, basis)
    add_summaries(session, attempt_id, judged, after=-1 if before is None else before)
    if tiles:
        session.execute(insert(JudgedTileRow.__table__), tiles)  # type: ignore[arg-type]
    session.execute(delete(JudgementRow).where(moved))
    return len(rows)


def _settled(session: Session, attempt_id: int, rank: int) -> int:
    """The last step whose frames no judge will be shown again, and that the rank has come past."""
    is_it = (RankRow.attempt_id == attempt_id) & (RankRow.rank == rank)
    reached = session.scalar(select(RankRow.last_step).where(is_it))
    return min(load_checkpoint(session, attempt_id).step, -1 if reached is None else reached)


def _add_block(session: Session, attempt_id: int, rank: int, plan: int, frames: Sequence[Any]) -> BlockRow:
    def whole(name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.fromiter((getattr(frame, name) for frame in frames), np.int64, len(frames))

    def flags(name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.fromiter((getattr(frame, name) for frame in frames), bool, len(frames))

    steps, received_at_ms = whole("step"), whole("received_at_ms")
    heads = pack_heads(
        [steps, whole("measured_at_ms"), received_at_ms, whole("sequence")], [flags("skipped"), flags("late")]
    )
    block = BlockRow(
        attempt_id=attempt_id, rank=rank, plan=plan, first_step=int(steps.min()), last_step=int(steps.max()),
        newest_ms=int(received_at_ms.max()), count=len(frames), heads=heads,
    )  # fmt: skip
    session.add(block)
    session.flush()
    return block


def _add_judged_block(session: Session, attempt_id: int, rows: Sequence[Any]) -> tuple[int, Ids]:
    steps = np.fromiter((row.step for row in rows), np.int64, len(rows))
    ranks = [
        np.fromiter((getattr(row, name) for row in rows), np.int64, len(rows))
        for name in ("ranks_delivered", "ranks_expected")
    ]
    floats = [
        np.array([np.nan if getattr(row, name) is None else getattr(row, name) for row in rows], np.float64)
        for name in ("schedule", "divisor")
    ]
    block = JudgedBlockRow(
        attempt_id=attempt_id, first_step=int(steps[0]), last_step=int(steps[-1]), count=len(rows),
        heads=pack_heads([steps, *ranks], floats),
    )  # fmt: skip
    session.add(block)
    session.flush()
    return block.id, steps


def _unpacked(rows: Sequence[Any]) -> tuple[Ratios, Bases]:
    """Ratios and bases, (steps, series); the order grows, so older judgements are shorter."""
    width = max(len(row.basis) for row in rows)
    ratios = np.full((len(rows), width), np.nan, np.float16)
    basis = np.zeros(ratios.shape, np.uint8)
    for place, row in enumerate(rows):
        ratios[place, : len(row.basis)] = np.frombuffer(row.ratios, "<f2")
        basis[place, : len(row.basis)] = np.frombuffer(row.basis, np.uint8)
    return ratios, basis


def _judged_tiles(ratios: Ratios, basis: Bases, order: Ids, block_id: int) -> list[dict[str, Any]]:
    """The tiles of the series of which something was judged."""
    judged = np.flatnonzero((basis > 0).any(axis=0) | ~np.isnan(ratios).all(axis=0))
    return [
        {
            "block_id": block_id,
            "series_id": int(order[column]),
            "ratios": pack(ratios[:, column]),
            "basis": pack(basis[:, column]),
        }
        for column in judged.tolist()
    ]
