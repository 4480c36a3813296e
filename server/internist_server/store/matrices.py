"""Windows of frames as matrices: steps x series, merged over ranks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
from internist_server.store.blocks import BLOCK, Block, list_blocks, read_tiles
from internist_server.store.frames import loose_steps, steps_between
from internist_server.store.layout import Layout, Span, span_of
from internist_server.store.merge import Floats, Ids, Mask, Part, divide, merge
from internist_server.store.series import Columns, list_plans
from internist_server.store.tables import FrameRow

MAX_CELLS: Final = 8_000_000
"""Values of one matrix that are held at a time; longer windows come in pieces."""
_STEPS_A_QUERY: Final = 512
_FRAME = FrameRow.__table__.c
_VALUES = select(
    _FRAME.rank, _FRAME.sequence, _FRAME.step, _FRAME.measured_at_ms, _FRAME.skipped,
    func.substr(_FRAME["values"], bindparam("begin"), bindparam("length")).label("part"),
).where(
    _FRAME.attempt_id == bindparam("attempt"), _FRAME.plan == bindparam("plan"),
    _FRAME.step.in_(bindparam("steps", expanding=True)),
)  # fmt: skip
_VALUES_TIMELY = _VALUES.where(_FRAME.late.is_(False))


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


def read_matrix(
    session: Session,
    attempt_id: int,
    steps: Sequence[int] | Ids,
    columns: Columns,
    *,
    layout: Layout | None = None,
    is_timely: bool = False,
    is_new: bool = False,
) -> Matrix:
    """The merged values of an attempt at these steps (rising); the caller keeps steps x columns within `MAX_CELLS`.

    Args:
        layout: where these columns lie in the attempt's plans; None: it is looked up.
        is_timely: only of frames that came before their step was judged: what the judge has seen.
        is_new: the steps lie behind the judge's checkpoint, so that none of their frames is in a tile.
    """
    wanted = np.asarray(steps, dtype=np.int64)
    if layout is None:
        layout = Layout.of(list_plans(session, attempt_id), columns)
    shown, columns, is_alone = len(columns.ids), layout.columns, layout.is_of_one_rank
    shape = (len(wanted), len(columns.ids))
    measured = np.zeros(len(wanted), dtype=np.int64)
    skipped = np.zeros(len(wanted), dtype=bool)
    parts: dict[int, Part] = {}
    for piece in _read(session, attempt_id, wanted, layout.spans, columns, is_timely=is_timely, is_new=is_new):
        part = parts.get(piece.span.rank)
        if part is None:
            counts = np.ones((1, 1) if is_alone else shape)  # of one rank alone they do not matter
            part = Part(np.full(shape, np.nan, np.float32), np.zeros(shape, bool), counts)
            parts[piece.span.rank] = part
        where = np.ix_(piece.rows, piece.span.columns)
        part.values[where] = piece.values
        part.present[where] = True
        if piece.span.counts is not None and not is_alone:
            part.counts[where] = piece.span.counts
        np.maximum.at(measured, piece.rows, piece.measured_at_ms)
        np.logical_or.at(skipped, piece.rows, piece.skipped)
    if parts:
        values, present = merge([parts[rank] for rank in sorted(parts)], columns.codes)
        divide(values, present, layout.ratios)
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
        wanted = {plan.number for plan in plans if is_whole or span_of(plan, columns) is not None}
        if not wanted or first > segment.last or last < segment.first:
            continue
        found = steps_between(session, segment, first=first, last=last, plans=sorted(wanted))
        steps = found[np.diff(found[:, 0], prepend=-1) > 0, 0]
        for begin in range(0, len(steps), rows):
            yield read_matrix(session, segment.attempt_id, steps[begin : begin + rows], columns)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Frames of one rank and plan, in the order in which they were sent: `rows` are the places of their steps."""

    span: Span
    rows: Ids
    values: Floats
    """(frames, columns of the span)."""
    measured_at_ms: Ids
    skipped: Mask


def _read(
    session: Session,
    attempt_id: int,
    steps: Ids,
    spans: Sequence[Span],
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
    of_plan: dict[int, list[Span]] = {}
    for span in spans:
        of_plan.setdefault(span.plan, []).append(span)
    blocks = [] if is_new else list_blocks(session, attempt_id, first=first, last=last, plans=sorted(of_plan))
    loose = steps.tolist()
    if not is_new:
        held = set(loose_steps(session, attempt_id, first=first, last=last))
        loose = [step for step in loose if step in held]
    for plan, found in sorted(of_plan.items()):
        of_rank = {span.rank: span for span in found}
        mine = [block for block in blocks if block.plan == plan and block.rank in of_rank]
        yield from _from_tiles(session, mine, steps, of_rank, columns, is_timely=is_timely)
        if loose:
            yield from _from_frames(session, attempt_id, plan, steps, loose, found, is_timely=is_timely)


def _from_tiles(
    session: Session,
    blocks: Sequence[Block],
    steps: Ids,
    of_rank: Mapping[int, Span],
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
    spans: Sequence[Span],
    *,
    is_timely: bool,
) -> Iterator[_Piece]:
    """The frames of one plan that are loose; of each only the span's bytes."""
    query = _VALUES_TIMELY if is_timely else _VALUES
    by_layout: dict[tuple[int, int], dict[int, Span]] = {}
    for span in spans:
        by_layout.setdefault((span.begin, span.length), {})[span.rank] = span
    for (begin, length), of_rank in sorted(by_layout.items()):
        asked: dict[str, Any] = {"attempt": attempt_id, "plan": plan, "begin": begin * 4 + 1, "length": length * 4}
        for first in range(0, len(wanted), _STEPS_A_QUERY):
            asked["steps"] = wanted[first : first + _STEPS_A_QUERY]
            grouped: dict[int, list[Any]] = {}
            # sorted here: asked for in this order, SQLite would go through the whole attempt by its key
            for row in sorted(session.execute(query, asked), key=_by_sequence):
                grouped.setdefault(row.rank, []).append(row)
            for rank, rows in grouped.items():
                if rank in of_rank:
                    yield _piece(of_rank[rank], rows, steps)


def _piece(span: Span, frames: Sequence[Any], steps: Ids) -> _Piece:
    count = len(frames)
    raw = np.frombuffer(b"".join([frame.part for frame in frames]), dtype="<f4").reshape(count, -1)
    return _Piece(
        span,
        np.searchsorted(steps, np.fromiter((frame.step for frame in frames), np.int64, count)),
        raw[:, span.picks],
        np.fromiter((frame.measured_at_ms for frame in frames), np.int64, count),
        np.fromiter((frame.skipped for frame in frames), bool, count),
    )


def _by_sequence(row: Any) -> tuple[int, int]:
    return row.rank, row.sequence
