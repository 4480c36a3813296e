"""Frames and judgements become tiles: a block at a time, each within the caller's transaction.

What is moved is settled: the judge's checkpoint lies behind it, so that no judge will be shown it again, and its rank
has come past it. The newest frames stay as they are: what looks at the last steps finds them in one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from internist_server.store.blocks import BLOCK, bundles_of, pack_heads
from internist_server.store.judgements import Bases, Ratios, load_checkpoint, unpack_judgement
from internist_server.store.merge import Ids
from internist_server.store.series import NO_SERIES, metrics_of
from internist_server.store.summaries import JudgedSteps, add_summaries
from internist_server.store.tables import AttemptRow, FrameRow, JudgementRow, PlanRow, RankRow
from internist_server.store.tile_tables import BlockRow, BundleRow, JudgedBlockRow, JudgedBundleRow
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
    columns = _by_metric(session, series)
    block = _add_block(session, attempt_id, rank, number, frames, series[columns])
    values = np.frombuffer(b"".join([frame.values for frame in frames]), "<f4").reshape(len(frames), -1)
    bundles = bundles_of([pack(values[:, column]) for column in columns.tolist()])
    rows = [{"block_id": block.id, "place": place, "tiles": tiles} for place, tiles in enumerate(bundles)]
    session.execute(insert(BundleRow.__table__), rows)  # type: ignore[arg-type]
    block.packed_bytes = len(block.heads) + sum(map(len, bundles))
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
    columns = _by_metric(session, order)
    columns = columns[(basis[:, columns] > 0).any(axis=0) | ~np.isnan(ratios[:, columns]).all(axis=0)]
    block_id, judged_steps = _add_judged_block(session, attempt_id, rows, order[columns])
    judged = JudgedSteps(judged_steps, order, ratios, basis)
    add_summaries(session, attempt_id, judged, after=-1 if before is None else before)
    tiles = [pack(part[:, column]) for column in columns.tolist() for part in (ratios, basis)]
    bundles = [
        {"block_id": block_id, "place": place, "tiles": some} for place, some in enumerate(bundles_of(tiles, parts=2))
    ]
    if bundles:
        session.execute(insert(JudgedBundleRow.__table__), bundles)  # type: ignore[arg-type]
    session.execute(delete(JudgementRow).where(moved))
    return len(rows)


def _settled(session: Session, attempt_id: int, rank: int) -> int:
    """The last step whose frames no judge will be shown again, and that the rank has come past."""
    is_it = (RankRow.attempt_id == attempt_id) & (RankRow.rank == rank)
    reached = session.scalar(select(RankRow.last_step).where(is_it))
    return min(load_checkpoint(session, attempt_id).step, -1 if reached is None else reached)


def _by_metric(session: Session, series: Ids) -> NDArray[np.int64]:
    """Places of series, those of one metric side by side; without those that are none."""
    metrics = metrics_of(session, series)
    return np.array(
        sorted(np.flatnonzero(series != NO_SERIES).tolist(), key=lambda at: metrics[int(series[at])]), np.int64
    )


def _add_block(session: Session, attempt_id: int, rank: int, plan: int, frames: Sequence[Any], series: Ids) -> BlockRow:
    def whole(name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.fromiter((getattr(frame, name) for frame in frames), np.int64, len(frames))

    def flags(name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.fromiter((getattr(frame, name) for frame in frames), bool, len(frames))

    steps, received_at_ms = whole("step"), whole("received_at_ms")
    heads = pack_heads(
        [steps, whole("measured_at_ms"), received_at_ms, whole("sequence")], [flags("skipped"), flags("late")],
        series=series,
    )  # fmt: skip
    block = BlockRow(
        attempt_id=attempt_id, rank=rank, plan=plan, first_step=int(steps.min()), last_step=int(steps.max()),
        newest_ms=int(received_at_ms.max()), count=len(frames), heads=heads,
    )  # fmt: skip
    session.add(block)
    session.flush()
    return block


def _add_judged_block(session: Session, attempt_id: int, rows: Sequence[Any], series: Ids) -> tuple[int, Ids]:
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
        heads=pack_heads([steps, *ranks], floats, series=series),
    )  # fmt: skip
    session.add(block)
    session.flush()
    return block.id, steps


def _unpacked(rows: Sequence[Any]) -> tuple[Ratios, Bases]:
    """Ratios and bases, (steps, series); the order grows, so older judgements are shorter."""
    unpacked = [unpack_judgement(row.packed) for row in rows]
    width = max(len(of_basis) for _, of_basis in unpacked)
    ratios = np.full((len(rows), width), np.nan, np.float16)
    basis = np.zeros(ratios.shape, np.uint8)
    for place, (of_step, of_basis) in enumerate(unpacked):
        ratios[place, : len(of_basis)], basis[place, : len(of_basis)] = of_step, of_basis
    return ratios, basis
