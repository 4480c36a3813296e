"""Frames as they came, and windows of them as matrices: steps x series, merged over ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
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


def first_received_ms(session: Session, attempt_id: int, *, after: int) -> int | None:
    """When the first frame over `after` that is still the earliest step came; None without one."""
    query = select(FrameRow.step, func.min(FrameRow.received_at_ms)).where(
        FrameRow.attempt_id == attempt_id, FrameRow.step > after
    )
    found = session.execute(query.group_by(FrameRow.step).order_by(FrameRow.step).limit(1)).first()
    return None if found is None else int(found[1])


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
    return session.scalar(found.limit(1)) is not None


def recent_times(session: Session, attempt_id: int, *, up_to: int, limit: int = 64) -> list[tuple[int, int]]:
    """The newest (step, measured at) of an attempt up to a step, newest first."""
    query = select(FrameRow.step, FrameRow.measured_at_ms).where(
        FrameRow.attempt_id == attempt_id, FrameRow.step <= up_to
    )
    return [(row[0], row[1]) for row in session.execute(query.order_by(FrameRow.step.desc()).limit(limit))]


def steps_between(
    session: Session, segment: Segment, *, first: int, last: int, plans: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """(step, plan) of the frames of a segment in a window, in order; of all plans or of these."""
    query = (
        select(FrameRow.step, FrameRow.plan)
        .where(FrameRow.attempt_id == segment.attempt_id)
        .where(FrameRow.step >= max(first, segment.first), FrameRow.step <= min(last, segment.last))
        .distinct()
        .order_by(FrameRow.step)
    )
    if plans is not None:
        query = query.where(FrameRow.plan.in_(plans))
    return [(row[0], row[1]) for row in session.execute(query)]


def read_matrix(
    session: Session, attempt_id: int, steps: Sequence[int], columns: Columns, *, is_timely: bool = False
) -> Matrix:
    """The merged values of an attempt at these steps (rising); the caller keeps steps x columns within `MAX_CELLS`.

    Args:
        is_timely: only of frames that came before their step was judged: what the judge has seen.
    """
    plans = list_plans(session, attempt_id)
    shown, columns = len(columns.ids), _with_denominators(columns)
    spans = [span for span in (_span(plan, columns) for plan in plans) if span is not None]
    ranks = {span.rank for span in spans}
    shape = (len(steps), len(columns.ids))
    place = {step: row for row, step in enumerate(steps)}
    measured = np.zeros(len(steps), dtype=np.int64)
    skipped = np.zeros(len(steps), dtype=bool)
    parts: dict[int, Part] = {}
    for rank, span, frames in _read(session, attempt_id, steps, spans, is_timely=is_timely):
        part = parts.get(rank)
        if part is None:
            counts = np.ones(shape if len(ranks) > 1 else (1, 1))  # of one rank alone they do not matter
            part = parts[rank] = Part(np.full(shape, np.nan, np.float32), np.zeros(shape, bool), counts)
        rows = np.fromiter((place[frame.step] for frame in frames), dtype=np.int64, count=len(frames))
        raw = np.frombuffer(b"".join([frame.values for frame in frames]), dtype="<f4").reshape(len(frames), -1)
        where = np.ix_(rows, span.columns)
        part.values[where] = raw[:, span.picks]
        part.present[where] = True
        if span.counts is not None and len(ranks) > 1:
            part.counts[where] = span.counts
        np.maximum.at(measured, rows, np.fromiter((f.measured_at_ms for f in frames), np.int64, len(frames)))
        np.logical_or.at(skipped, rows, np.fromiter((f.skipped for f in frames), bool, len(frames)))
    if parts:
        values, present = merge([parts[rank] for rank in sorted(parts)], columns.codes)
        divide(values, present, _ratios(columns))
    else:
        values, present = np.full(shape, np.nan, np.float32), np.zeros(shape, dtype=bool)
    return Matrix(np.array(steps, dtype=np.int64), values[:, :shown], present[:, :shown], measured, skipped)


def read_history(
    session: Session, segments: Sequence[Segment], columns: Columns, *, first: int, last: int
) -> Iterator[Matrix]:
    """A window of a history in pieces, oldest first: all steps at which one of the columns may have a point."""
    rows = max(1, min(4_096, MAX_CELLS // max(1, len(columns.ids))))
    for segment in reversed(segments):
        wanted = {plan.number for plan in list_plans(session, segment.attempt_id) if _span(plan, columns) is not None}
        if not wanted or first > segment.last or last < segment.first:
            continue
        found = steps_between(session, segment, first=first, last=last, plans=sorted(wanted))
        steps = sorted({step for step, _ in found})
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


def _read(
    session: Session, attempt_id: int, steps: Sequence[int], spans: Sequence[_Span], *, is_timely: bool
) -> Iterator[tuple[int, _Span, list[Any]]]:
    """Frames at these steps by rank and plan, in the order in which they were sent; of each only the span's bytes.

    Of two values that one rank sent for the same step and series, the later counts.
    """
    by_layout: dict[tuple[int, int, int], dict[int, _Span]] = {}
    for span in spans:
        by_layout.setdefault((span.plan, span.begin, span.length), {})[span.rank] = span
    for (plan, begin, length), of_rank in sorted(by_layout.items()):
        values = func.substr(FrameRow.values, begin * 4 + 1, length * 4).label("values")
        fields = (
            FrameRow.rank, FrameRow.sequence, FrameRow.step, FrameRow.measured_at_ms, FrameRow.skipped, values,
        )  # fmt: skip
        for first in range(0, len(steps), _STEPS_A_QUERY):
            query = (
                select(*fields)
                .where(FrameRow.attempt_id == attempt_id, FrameRow.plan == plan)
                .where(FrameRow.step.in_(steps[first : first + _STEPS_A_QUERY]))
            )
            if is_timely:
                query = query.where(FrameRow.late.is_(False))
            grouped: dict[int, list[Any]] = {}
            # sorted here: asked for in this order, SQLite would go through the whole attempt by its key
            for row in sorted(session.execute(query), key=_by_sequence):
                grouped.setdefault(row.rank, []).append(row)
            for rank, rows in grouped.items():
                if rank in of_rank:
                    yield rank, of_rank[rank], rows


def _by_sequence(row: Any) -> tuple[int, int]:
    return row.rank, row.sequence
