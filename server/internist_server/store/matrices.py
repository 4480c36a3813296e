"""Windows of what was measured as matrices: steps x series, merged over ranks. Frames of ranks whose values lie alike
are taken apart and merged together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
from internist_server.store.blocks import BLOCK, Block, Tiles, list_blocks, read_tiles
from internist_server.store.frames import NewFrame, loose_steps, steps_between
from internist_server.store.layout import Layout, Layouts
from internist_server.store.merge import Floats, Ids, Mask, Parts, divide, merge, of_one_rank
from internist_server.store.series import Columns, StoredPlan, list_plans
from internist_server.store.tables import FrameRow

MAX_CELLS: Final = 8_000_000
"""Values of one matrix that are held at a time; longer windows come in pieces."""
_CELLS_OF_RANKS: Final = 2_000_000
"""Values of ranks that are held side by side; more of them are merged group after group."""
_STEPS_A_QUERY: Final = 512
_FRAME = FrameRow.__table__.c
_VALUES = select(
    _FRAME.rank, _FRAME.sequence, _FRAME.step, _FRAME.measured_at_ms, _FRAME.skipped,
    func.substr(_FRAME["values"], bindparam("begin"), bindparam("length")),
).where(
    _FRAME.attempt_id == bindparam("attempt"), _FRAME.plan == bindparam("plan"),
    _FRAME.rank + 0 >= bindparam("first"), _FRAME.rank + 0 <= bindparam("last"),  # not by the key: it finds by step
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
    layouts: Layouts | None = None,
    is_timely: bool = False,
    is_new: bool = False,
) -> Matrix:
    """The merged values of an attempt at these steps (rising); the caller keeps steps x columns within `MAX_CELLS`.

    Args:
        layouts: where these columns lie in the attempt's plans; None: it is looked up.
        is_timely: only of frames that came before their step was judged: what the judge has seen.
        is_new: the steps lie behind the judge's checkpoint, so that none of their frames is in a tile.
    """
    if layouts is None:
        layouts = Layouts.of(list_plans(session, attempt_id), columns)
    shown, columns, ranks = len(columns.ids), layouts.columns, layouts.ranks
    window = _Window(np.asarray(steps, dtype=np.int64), columns)
    reader = _Reader(session, attempt_id, window, layouts.of_plans, is_timely=is_timely, is_new=is_new)
    size = max(1, _CELLS_OF_RANKS // max(1, len(window.steps) * len(columns.ids)))
    groups = (ranks[begin : begin + size] for begin in range(0, len(ranks), size))
    parts = (window.gather(group, reader.read(group), is_alone=len(ranks) == 1) for group in groups)
    values, present = merge(parts, columns.codes, steps=len(window.steps))
    divide(values, present, layouts.ratios)
    return Matrix(window.steps, values[:, :shown], present[:, :shown], window.measured_at_ms, window.skipped)


def matrix_of(frames: Sequence[NewFrame], rank: int, steps: Sequence[int], layouts: Layouts, *, width: int) -> Matrix:
    """The values of the only rank of an attempt at these steps (rising), by frames that have just come; `width`: how
    many of the layouts' columns are wanted, the first ones."""
    window, wanted = _Window(np.asarray(steps, dtype=np.int64), layouts.columns), set(steps)
    mine = [frame for frame in frames if frame.step in wanted]
    pieces = []
    for layout in layouts.of_plans:
        span = slice(4 * layout.begin, 4 * (layout.begin + layout.length))
        rows = [
            (rank, one.sequence, one.step, one.measured_at_ms, one.skipped, one.values[span])
            for one in mine
            if one.plan == layout.plan
        ]
        if rows and rank in layout.ranks:
            pieces.append((layout.plan, _piece(layout, rows, window.steps)))
    ordered = [piece for _, piece in sorted(pieces, key=lambda one: one[0])]
    parts = window.gather(np.array([rank], np.int64), ordered, is_alone=True)
    values, present = merge([parts], layouts.columns.codes, steps=len(window.steps))
    divide(values, present, layouts.ratios)
    return Matrix(window.steps, values[:, :width], present[:, :width], window.measured_at_ms, window.skipped)


def read_parts(
    session: Session, attempt_id: int, steps: Sequence[int] | Ids, columns: Columns
) -> tuple[Ids, Floats, Mask]:
    """What each rank told by itself at these steps (rising): the ranks, their values (ranks, steps, columns), and where
    these are present."""
    layouts = Layouts.of(list_plans(session, attempt_id), columns)
    window = _Window(np.asarray(steps, dtype=np.int64), layouts.columns)
    reader = _Reader(session, attempt_id, window, layouts.of_plans, is_timely=False, is_new=False)
    parts = window.gather(layouts.ranks, reader.read(layouts.ranks), is_alone=True)
    return layouts.ranks, of_one_rank(parts.values, layouts.columns.codes), parts.present


def read_history(
    session: Session, segments: Sequence[Segment], columns: Columns, *, first: int, last: int, is_whole: bool = False
) -> Iterator[Matrix]:
    """A window of a history in pieces, oldest first: all steps at which one of the columns may have a point, or, if it
    is to be whole, at which anything has."""
    rows = max(1, MAX_CELLS // max(1, len(columns.ids)))
    for segment in reversed(segments):
        plans = list_plans(session, segment.attempt_id)
        wanted = {plan.number for plan in plans if is_whole or _has_any(plan, columns)}
        if not wanted or first > segment.last or last < segment.first:
            continue
        found = steps_between(session, segment, first=first, last=last, plans=sorted(wanted))
        steps = found[np.diff(found[:, 0], prepend=-1) > 0, 0]
        for begin in range(0, len(steps), rows):
            yield read_matrix(session, segment.attempt_id, steps[begin : begin + rows], columns)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Frames of one layout; of each rank in the order in which they were sent."""

    layout: Layout
    ranks: Ids
    rows: Ids
    """The places of their steps."""
    values: Floats
    """(frames, columns of the layout)."""
    measured_at_ms: Ids
    skipped: Mask


class _Window:
    """The steps that are read, and what is gathered of them."""

    def __init__(self, steps: Ids, columns: Columns) -> None:
        self.steps, self.columns = steps, columns
        self.measured_at_ms = np.zeros(len(steps), dtype=np.int64)
        self.skipped = np.zeros(len(steps), dtype=bool)

    def gather(self, ranks: Ids, pieces: Iterable[_Piece], *, is_alone: bool) -> Parts:
        """What these ranks sent, side by side. `is_alone`: there are no others, so that counts do not matter.

        Of two values that one rank sent for the same step and series, the later counts.
        """
        shape = len(ranks), len(self.steps), len(self.columns.ids)
        counts = np.ones((1, 1, 1) if is_alone else shape)
        parts = Parts(np.full(shape, np.nan, np.float32), np.zeros(shape, bool), counts)
        for piece in pieces:
            layout = piece.layout
            where = np.searchsorted(ranks, piece.ranks)[:, np.newaxis], piece.rows[:, np.newaxis], layout.columns
            parts.values[where] = piece.values
            parts.present[where] = True
            if layout.counts is not None and not is_alone:
                parts.counts[where] = layout.counts[np.searchsorted(layout.ranks, piece.ranks)]
            np.maximum.at(self.measured_at_ms, piece.rows, piece.measured_at_ms)
            np.logical_or.at(self.skipped, piece.rows, piece.skipped)
        return parts


class _Reader:
    """Reads the frames of a window by plan: those in tiles, which came first, and then those that are loose."""

    def __init__(
        self,
        session: Session,
        attempt_id: int,
        window: _Window,
        layouts: Sequence[Layout],
        *,
        is_timely: bool,
        is_new: bool,
    ) -> None:
        self._session, self._attempt_id, self._window = session, attempt_id, window
        self._is_timely = is_timely
        self._of_plan: dict[int, list[Layout]] = {}
        for layout in layouts:
            self._of_plan.setdefault(layout.plan, []).append(layout)
        self._blocks: list[Block] = []
        self._loose = window.steps.tolist()
        if not is_new and len(window.steps) and layouts:
            first, last = int(window.steps[0]), int(window.steps[-1])
            self._blocks = list_blocks(session, attempt_id, first=first, last=last, plans=sorted(self._of_plan))
            loose = set(loose_steps(session, attempt_id, first=first, last=last))
            self._loose = [step for step in self._loose if step in loose]

    def read(self, ranks: Ids) -> Iterator[_Piece]:
        """The frames of these ranks."""
        wanted = set(ranks.tolist())
        for plan, layouts in sorted(self._of_plan.items()):
            of_rank = {rank: layout for layout in layouts for rank in layout.ranks.tolist() if rank in wanted}
            blocks = [block for block in self._blocks if block.plan == plan and block.rank in of_rank]
            yield from self._from_tiles(blocks, of_rank)
            if self._loose and of_rank:
                yield from self._from_frames(plan, of_rank)

    def _from_tiles(self, blocks: Sequence[Block], of_rank: dict[int, Layout]) -> Iterator[_Piece]:
        """The frames of one plan that lie in tiles."""
        if not blocks:
            return
        ids = self._window.columns.ids
        wanted = np.unique(np.concatenate([ids[layout.columns] for layout in of_rank.values()]))
        held = max(1, MAX_CELLS // (BLOCK * max(1, len(wanted))))
        for begin in range(0, len(blocks), held):
            tiles = read_tiles(self._session, blocks[begin : begin + held], wanted.tolist())
            alike: dict[int, list[Block]] = {}
            for block in blocks[begin : begin + held]:
                if block.id in tiles:
                    alike.setdefault(id(of_rank[block.rank]), []).append(block)
            for group in alike.values():
                yield self._joined(of_rank[group[0].rank], group, tiles)

    def _joined(self, layout: Layout, blocks: Sequence[Block], tiles: Tiles) -> _Piece:
        """The frames of some blocks of one layout as one piece."""
        steps, ids = self._window.steps, self._window.columns.ids[layout.columns]
        of_steps = np.concatenate([block.steps for block in blocks])
        rows = np.minimum(np.searchsorted(steps, of_steps), len(steps) - 1)
        here = steps[rows] == of_steps
        if self._is_timely:
            here &= ~np.concatenate([block.late for block in blocks])
        values = np.concatenate([_lines(*tiles[block.id], ids) for block in blocks], axis=1)
        return _Piece(
            layout,
            np.repeat([block.rank for block in blocks], [len(block.steps) for block in blocks])[here],
            rows[here],
            values[:, here].T,
            np.concatenate([block.measured_at_ms for block in blocks])[here],
            np.concatenate([block.skipped for block in blocks])[here],
        )

    def _from_frames(self, plan: int, of_rank: dict[int, Layout]) -> Iterator[_Piece]:
        """The frames of one plan that are loose; of each only the bytes that are wanted."""
        by_span: dict[tuple[int, int], list[Layout]] = {}
        for layout in self._of_plan[plan]:
            by_span.setdefault((layout.begin, layout.length), []).append(layout)
        first, last = min(of_rank), max(of_rank)
        for (begin, length), layouts in sorted(by_span.items()):
            asked: dict[str, Any] = {"attempt": self._attempt_id, "plan": plan, "first": first, "last": last}
            asked |= {"begin": begin * 4 + 1, "length": length * 4}
            for at in range(0, len(self._loose), _STEPS_A_QUERY):
                asked["steps"] = self._loose[at : at + _STEPS_A_QUERY]
                rows = self._session.execute(_VALUES_TIMELY if self._is_timely else _VALUES, asked).all()
                for layout in layouts:
                    mine = [row for row in rows if of_rank.get(row[0]) is layout]
                    if mine:
                        yield _piece(layout, mine, self._window.steps)


def _lines(series: Ids, values: Floats, ids: Ids) -> Floats:
    """The values of these series, (series, frames), of a block that has them in another order."""
    order = np.argsort(series)
    return values[order[np.searchsorted(series, ids, sorter=order)]]


def _piece(layout: Layout, frames: list[Any], steps: Ids) -> _Piece:
    # sorted here: asked for in this order, SQLite would go through the whole attempt by its key
    ranks, _, of_steps, measured_at_ms, skipped, values = zip(*sorted(frames), strict=True)
    raw = np.frombuffer(b"".join(values), dtype="<f4").reshape(len(frames), -1)
    return _Piece(
        layout,
        np.array(ranks, np.int64),
        np.searchsorted(steps, np.array(of_steps, np.int64)),
        raw[:, layout.picks],
        np.array(measured_at_ms, np.int64),
        np.array(skipped, bool),
    )


def _has_any(plan: StoredPlan, columns: Columns) -> bool:
    return bool(np.isin(plan.series, columns.ids).any())
