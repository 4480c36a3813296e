"""Frames as they came, and windows of them as matrices: steps x series, merged over ranks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
from internist_server.store.blocks import BLOCK, Block, list_blocks, read_tiles
from internist_server.store.merge import Floats, Ids, Mask, Part, divide, merge
from internist_server.store.series import NO_SERIES, Columns, StoredPlan, list_plans
from internist_server.store.tables import FrameRow, PlanRow

MAX_CELLS: Final = 8_000_000
"""Values of one matrix that are held at a time; longer windows come in pieces."""
_STEPS_A_QUERY: Final = 512


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame that ingest has found good."""

    sequence: int
    step: int
    plan: int
    measured_at_ms: int
    skipped: bool
    late: bool
    values: bytes


@dataclass(frozen=True, slots=True)
class Matrix:
    """Merged values (steps, columns), where they are present, and when and whether each step was measured."""

    steps: Ids
    values: Floats
    present: Mask
    measured_at_ms: Ids
    skipped: Mask

    def rows(self) -> "Iterator[Row]":
        """Its steps, one after the other."""
        for at, step in enumerate(self.steps.tolist()):
            yield Row(step, self.values[at], self.present[at], bool(self.skipped[at]))


class Row(NamedTuple):
    """One step: its number, the values by column where they are present, and whether a gradient scaler skipped it."""

    step: int
    values: Floats
    present: Mask
    skipped: bool


def add_frames(session: Session, attempt_id: int, rank: int, frames: Sequence[NewFrame], *, now_ms: int) -> None:
    """Append frames of one rank."""
    if not frames:
        return
    rows = [
        {
            "attempt_id": attempt_id,
            "rank": rank,
            "sequence": frame.sequence,
            "step": frame.step,
            "plan": frame.plan,
            "measured_at_ms": frame.measured_at_ms,
            "received_at_ms": now_ms,
            "skipped": frame.skipped,
            "late": frame.late,
            "values": frame.values,
        }
        for frame in frames
    ]
    session.execute(insert(FrameRow), rows)


def pending_steps(
    session: Session, attempt_id: int, *, after: int, up_to: int, limit: int, is_timely: bool = False
) -> list[int]:
    """Steps that have frames, over `after`, in order; `is_timely`: frames that came before their step was judged."""
    query = select(FrameRow.step).where(
        FrameRow.attempt_id == attempt_id, FrameRow.step > after, FrameRow.step <= up_to
    )
    if is_timely:
        query = query.where(FrameRow.late.is_(False))
    return list(session.scalars(query.distinct().order_by(FrameRow.step).limit(limit)))


def first_received(session: Session, attempt_id: int, *, after: int) -> tuple[int, int] | None:
    """The first step over `after` that has frames, and when the first of them came; None without one."""
    query = select(FrameRow.step, func.min(FrameRow.received_at_ms)).where(
        FrameRow.attempt_id == attempt_id, FrameRow.step > after
    )
    found = session.execute(query.group_by(FrameRow.step).order_by(FrameRow.step).limit(1)).first()
    return None if found is None else (int(found[0]), int(found[1]))


def newest_step(session: Session, attempt_id: int, rank: int, *, after: int, up_to: int) -> int | None:
    """The newest step of a rank's frames in a range; None without one."""
    query = select(func.max(FrameRow.step)).where(
        FrameRow.attempt_id == attempt_id, FrameRow.rank == rank, FrameRow.step > after, FrameRow.step <= up_to
    )
    return session.scalar(query)


def is_measured_between(session: Session, attempt_id: int, rank: int | None = None, *, first: int, last: int) -> bool:
    """Whether a rank (None: any) has sent a frame of one of these steps that holds more than logged scalars."""
    is_of_frame = (
        (PlanRow.attempt_id == FrameRow.attempt_id)
        & (PlanRow.rank == FrameRow.rank)
        & (PlanRow.number == FrameRow.plan)
    )
    found = select(FrameRow.step).join(PlanRow, is_of_frame).where(FrameRow.attempt_id == attempt_id)
    if rank is not None:
        found = found.where(FrameRow.rank == rank)
    found = found.where(FrameRow.step >= first, FrameRow.step <= last, PlanRow.is_sampled)
    if session.scalar(found.limit(1)) is not None:
        return True
    blocks = list_blocks(session, attempt_id, first=first, last=last)
    if not blocks:
        return False
    sampled = {(plan.rank, plan.number) for plan in list_plans(session, attempt_id) if plan.is_sampled}
    return any(
        ((block.steps >= first) & (block.steps <= last)).any()
        for block in blocks
        if (block.rank, block.plan) in sampled and rank in (None, block.rank)
    )


def recent_times(session: Session, attempt_id: int, *, up_to: int, limit: int = 64) -> list[tuple[int, int]]:
    """The newest (step, measured at) of an attempt up to a step, newest first."""
    query = select(FrameRow.step, FrameRow.measured_at_ms).where(
        FrameRow.attempt_id == attempt_id, FrameRow.step <= up_to
    )
    return [(row[0], row[1]) for row in session.execute(query.order_by(FrameRow.step.desc()).limit(limit))]


def steps_between(
    session: Session, segment: Segment, *, first: int, last: int, plans: Sequence[int] | None = None
) -> Ids:
    """Steps of the frames of a segment in a window with their plans, (frames, 2), by step; of all plans or of these."""
    first, last = max(first, segment.first), min(last, segment.last)
    query = select(FrameRow.step, FrameRow.plan).distinct()
    query = query.where(FrameRow.attempt_id == segment.attempt_id, FrameRow.step >= first, FrameRow.step <= last)
    if plans is not None:
        query = query.where(FrameRow.plan.in_(plans))
    loose = np.array([(row[0], row[1]) for row in session.execute(query)], np.int64).reshape(-1, 2)
    blocks = list_blocks(session, segment.attempt_id, first=first, last=last, plans=plans)
    pairs = [np.stack([block.steps, np.full_like(block.steps, block.plan)], axis=1) for block in blocks]
    found = np.concatenate([loose, *pairs])
    found = found[(found[:, 0] >= first) & (found[:, 0] <= last)]
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    is_new = np.ones(len(found), bool)
    is_new[1:] = (found[1:] != found[:-1]).any(axis=1)
    return found[is_new]


def read_matrix(
    session: Session,
    attempt_id: int,
    steps: Sequence[int] | Ids,
    columns: Columns,
    *,
    is_timely: bool = False,
    is_new: bool = False,
) -> Matrix:
    """The merged values of an attempt at these steps (rising); the caller keeps steps x columns within `MAX_CELLS`.

    Args:
        is_timely: only of frames that came before their step was judged: what the judge has seen.
        is_new: the steps lie behind the judge's checkpoint, so that none of their frames is in a tile.
    """
    wanted = np.asarray(steps, dtype=np.int64)
    plans = list_plans(session, attempt_id)
    shown, columns = len(columns.ids), _with_denominators(columns)
    spans = [span for span in (_span(plan, columns) for plan in plans) if span is not None]
    ranks = {span.rank for span in spans}
    shape = (len(wanted), len(columns.ids))
    measured = np.zeros(len(wanted), dtype=np.int64)
    skipped = np.zeros(len(wanted), dtype=bool)
    parts: dict[int, Part] = {}
    for piece in _read(session, attempt_id, wanted, spans, columns, is_timely=is_timely, is_new=is_new):
        part = parts.get(piece.span.rank)
        if part is None:
            counts = np.ones(shape if len(ranks) > 1 else (1, 1))  # of one rank alone they do not matter
            part = Part(np.full(shape, np.nan, np.float32), np.zeros(shape, bool), counts)
            parts[piece.span.rank] = part
        where = np.ix_(piece.rows, piece.span.columns)
        part.values[where] = piece.values
        part.present[where] = True
        if piece.span.counts is not None and len(ranks) > 1:
            part.counts[where] = piece.span.counts
        np.maximum.at(measured, piece.rows, piece.measured_at_ms)
        np.logical_or.at(skipped, piece.rows, piece.skipped)
    if parts:
        values, present = merge([parts[rank] for rank in sorted(parts)], columns.codes)
        divide(values, present, _ratios(columns))
    else:
        values, present = np.full(shape, np.nan, np.float32), np.zeros(shape, dtype=bool)
    return Matrix(wanted, values[:, :shown], present[:, :shown], measured, skipped)


def read_history(
    session: Session, segments: Sequence[Segment], columns: Columns, *, first: int, last: int, is_whole: bool = False
) -> Iterator[Matrix]:
    """A window of a history in pieces, oldest first: all steps at which one of the columns may have a point, or, if it
    is to be whole, at which anything has."""
    rows = max(1, MAX_CELLS // max(1, len(columns.ids)))
    for segment in reversed(segments):
        plans = list_plans(session, segment.attempt_id)
        wanted = {plan.number for plan in plans if is_whole or _span(plan, columns) is not None}
        if not wanted or first > segment.last or last < segment.first:
            continue
        found = steps_between(session, segment, first=first, last=last, plans=sorted(wanted))
        steps = np.unique(found[:, 0])
        for begin in range(0, len(steps), rows):
            yield read_matrix(session, segment.attempt_id, steps[begin : begin + rows], columns)


@dataclass(frozen=True, slots=True)
class _Span:
    """Where the wanted columns lie in the values of one rank's plan: `length` floats from `begin` on."""

    rank: int
    plan: int
    begin: int
    length: int
    picks: NDArray[np.int64]
    columns: NDArray[np.int64]
    counts: Ids | None


def _with_denominators(columns: Columns) -> Columns:
    """The columns, followed by those of denominators that are not among them; they merge as their numerators do."""
    needed, first = np.unique(columns.over, return_index=True)
    is_new = (needed != NO_SERIES) & ~np.isin(needed, columns.ids)
    if not is_new.any():
        return columns
    added = needed[is_new]
    return Columns(
        np.concatenate([columns.ids, added]),
        np.concatenate([columns.codes, columns.codes[first[is_new]]]),
        np.concatenate([columns.over, np.full(len(added), NO_SERIES, dtype=np.int64)]),
    )


def _ratios(columns: Columns) -> list[tuple[int, int]]:
    """Columns of ratios, each with the column of its denominator."""
    ratios = np.flatnonzero(columns.over != NO_SERIES).tolist()
    place = {int(one): column for column, one in enumerate(columns.ids)} if ratios else {}
    return [(column, place[int(columns.over[column])]) for column in ratios]


def _span(plan: StoredPlan, columns: Columns) -> _Span | None:
    if not len(columns.ids) or not len(plan.series):
        return None
    sorter = np.argsort(columns.ids, kind="stable")
    places = np.minimum(np.searchsorted(columns.ids, plan.series, sorter=sorter), len(sorter) - 1)
    targets = sorter[places]
    picks = np.flatnonzero(columns.ids[targets] == plan.series)
    if not len(picks):
        return None
    begin, end = int(picks[0]), int(picks[-1]) + 1
    counts = None if plan.counts is None else plan.counts[picks]
    return _Span(plan.rank, plan.number, begin, end - begin, picks - begin, targets[picks], counts)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Frames of one rank and plan, in the order in which they were sent: `rows` are the places of their steps."""

    span: _Span
    rows: Ids
    values: Floats
    """(frames, columns of the span)."""
    measured_at_ms: Ids
    skipped: Mask


def _read(
    session: Session,
    attempt_id: int,
    steps: Ids,
    spans: Sequence[_Span],
    columns: Columns,
    *,
    is_timely: bool,
    is_new: bool,
) -> Iterator[_Piece]:
    """Frames at these steps by plan: those in tiles, which came first, and then those that are loose.

    Of two values that one rank sent for the same step and series, the later counts.
    """
    if not len(steps) or not spans:
        return
    first, last = int(steps[0]), int(steps[-1])
    of_plan: dict[int, list[_Span]] = {}
    for span in spans:
        of_plan.setdefault(span.plan, []).append(span)
    blocks = [] if is_new else list_blocks(session, attempt_id, first=first, last=last, plans=sorted(of_plan))
    loose_steps = steps.tolist()
    if not is_new:
        loose = set(_loose_steps(session, attempt_id, first=first, last=last))
        loose_steps = [step for step in loose_steps if step in loose]
    for plan, found in sorted(of_plan.items()):
        of_rank = {span.rank: span for span in found}
        mine = [block for block in blocks if block.plan == plan and block.rank in of_rank]
        yield from _from_tiles(session, mine, steps, of_rank, columns, is_timely=is_timely)
        if loose_steps:
            yield from _from_frames(session, attempt_id, plan, steps, loose_steps, found, is_timely=is_timely)


def _loose_steps(session: Session, attempt_id: int, *, first: int, last: int) -> list[int]:
    query = select(FrameRow.step).where(
        FrameRow.attempt_id == attempt_id, FrameRow.step >= first, FrameRow.step <= last
    )
    return list(session.scalars(query.distinct()))


def _from_tiles(
    session: Session,
    blocks: Sequence[Block],
    steps: Ids,
    of_rank: Mapping[int, _Span],
    columns: Columns,
    *,
    is_timely: bool,
) -> Iterator[_Piece]:
    """The frames of one plan that lie in tiles."""
    wanted = np.unique(np.concatenate([columns.ids[span.columns] for span in of_rank.values()]))
    held = max(1, MAX_CELLS // (BLOCK * max(1, len(wanted))))
    for begin in range(0, len(blocks), held):
        tiles = read_tiles(session, blocks[begin : begin + held], wanted.tolist())
        for block in blocks[begin : begin + held]:
            if block.id not in tiles:
                continue
            span, (ids, values) = of_rank[block.rank], tiles[block.id]
            rows = np.minimum(np.searchsorted(steps, block.steps), len(steps) - 1)
            here = steps[rows] == block.steps
            if is_timely:
                here &= ~block.late
            order = np.argsort(ids)
            lines = order[np.searchsorted(ids, columns.ids[span.columns], sorter=order)]
            yield _Piece(span, rows[here], values[lines][:, here].T, block.measured_at_ms[here], block.skipped[here])


def _from_frames(
    session: Session,
    attempt_id: int,
    plan: int,
    steps: Ids,
    wanted: Sequence[int],
    spans: Sequence[_Span],
    *,
    is_timely: bool,
) -> Iterator[_Piece]:
    """The frames of one plan that are loose; of each only the span's bytes."""
    by_layout: dict[tuple[int, int], dict[int, _Span]] = {}
    for span in spans:
        by_layout.setdefault((span.begin, span.length), {})[span.rank] = span
    for (begin, length), of_rank in sorted(by_layout.items()):
        values = func.substr(FrameRow.values, begin * 4 + 1, length * 4).label("values")
        fields = (
            FrameRow.rank, FrameRow.sequence, FrameRow.step, FrameRow.measured_at_ms, FrameRow.skipped, values,
        )  # fmt: skip
        for first in range(0, len(wanted), _STEPS_A_QUERY):
            query = (
                select(*fields)
                .where(FrameRow.attempt_id == attempt_id, FrameRow.plan == plan)
                .where(FrameRow.step.in_(wanted[first : first + _STEPS_A_QUERY]))
            )
            if is_timely:
                query = query.where(FrameRow.late.is_(False))
            grouped: dict[int, list[Any]] = {}
            # sorted here: asked for in this order, SQLite would go through the whole attempt by its key
            for row in sorted(session.execute(query), key=_by_sequence):
                grouped.setdefault(row.rank, []).append(row)
            for rank, rows in grouped.items():
                if rank in of_rank:
                    yield _piece(of_rank[rank], rows, steps)


def _piece(span: _Span, frames: Sequence[Any], steps: Ids) -> _Piece:
    count = len(frames)
    raw = np.frombuffer(b"".join([frame.values for frame in frames]), dtype="<f4").reshape(count, -1)
    return _Piece(
        span,
        np.searchsorted(steps, np.fromiter((frame.step for frame in frames), np.int64, count)),
        raw[:, span.picks],
        np.fromiter((frame.measured_at_ms for frame in frames), np.int64, count),
        np.fromiter((frame.skipped for frame in frames), bool, count),
    )


def _by_sequence(row: Any) -> tuple[int, int]:
    return row.rank, row.sequence
