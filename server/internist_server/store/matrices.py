"""Windows of what was measured as matrices: steps x series, merged over ranks.

Ranks of one model have the same series in the same places of their frames. Such a *layout* is worked out once for all
of them, and their frames are taken apart and merged together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
from internist_server.store.blocks import BLOCK, Block, list_blocks, read_tiles
from internist_server.store.frames import steps_between
from internist_server.store.merge import Floats, Ids, Mask, Parts, divide, merge
from internist_server.store.series import NO_SERIES, Columns, StoredPlan, list_plans
from internist_server.store.tables import FrameRow

MAX_CELLS: Final = 8_000_000
"""Values of one matrix that are held at a time; longer windows come in pieces."""
_CELLS_OF_RANKS: Final = 2_000_000
"""Values of ranks that are held side by side; more of them are merged group after group."""
_STEPS_A_QUERY: Final = 512


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
    is_timely: bool = False,
    is_new: bool = False,
) -> Matrix:
    """The merged values of an attempt at these steps (rising); the caller keeps steps x columns within `MAX_CELLS`.

    Args:
        is_timely: only of frames that came before their step was judged: what the judge has seen.
        is_new: the steps lie behind the judge's checkpoint, so that none of their frames is in a tile.
    """
    shown, columns = len(columns.ids), _with_denominators(columns)
    layouts = _layouts(list_plans(session, attempt_id), columns)
    window = _Window(np.asarray(steps, dtype=np.int64), columns)
    reader = _Reader(session, attempt_id, window, layouts, is_timely=is_timely, is_new=is_new)
    ranks = np.unique(np.concatenate([layout.ranks for layout in layouts])) if layouts else np.empty(0, np.int64)
    size = max(1, _CELLS_OF_RANKS // max(1, len(window.steps) * len(columns.ids)))
    groups = (ranks[begin : begin + size] for begin in range(0, len(ranks), size))
    parts = (window.gather(group, reader.read(group), is_alone=len(ranks) == 1) for group in groups)
    values, present = merge(parts, columns.codes, steps=len(window.steps))
    divide(values, present, _ratios(columns))
    return Matrix(window.steps, values[:, :shown], present[:, :shown], window.measured_at_ms, window.skipped)


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
        steps = np.unique(found[:, 0])
        for begin in range(0, len(steps), rows):
            yield read_matrix(session, segment.attempt_id, steps[begin : begin + rows], columns)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the wanted columns lie in the values of one plan of some ranks: `length` floats from `begin` on."""

    plan: int
    begin: int
    length: int
    picks: NDArray[np.int64]
    columns: NDArray[np.int64]
    ranks: Ids
    """Rising."""
    counts: Ids | None
    """(ranks, columns): what the values count for; None: all the same."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Frames of one layout; of each rank in the order in which they were sent."""

    layout: _Layout
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
        layouts: Sequence[_Layout],
        *,
        is_timely: bool,
        is_new: bool,
    ) -> None:
        self._session, self._attempt_id, self._window = session, attempt_id, window
        self._is_timely = is_timely
        self._of_plan: dict[int, list[_Layout]] = {}
        for layout in layouts:
            self._of_plan.setdefault(layout.plan, []).append(layout)
        self._blocks: list[Block] = []
        self._loose = window.steps.tolist()
        if not is_new and len(window.steps) and layouts:
            first, last = int(window.steps[0]), int(window.steps[-1])
            self._blocks = list_blocks(session, attempt_id, first=first, last=last, plans=sorted(self._of_plan))
            loose = set(_loose_steps(session, attempt_id, first=first, last=last))
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

    def _from_tiles(self, blocks: Sequence[Block], of_rank: dict[int, _Layout]) -> Iterator[_Piece]:
        """The frames of one plan that lie in tiles."""
        if not blocks:
            return
        steps, ids = self._window.steps, self._window.columns.ids
        wanted = np.unique(np.concatenate([ids[layout.columns] for layout in of_rank.values()]))
        held = max(1, MAX_CELLS // (BLOCK * max(1, len(wanted))))
        for begin in range(0, len(blocks), held):
            tiles = read_tiles(self._session, blocks[begin : begin + held], wanted.tolist())
            for block in blocks[begin : begin + held]:
                if block.id not in tiles:
                    continue
                layout, (series, values) = of_rank[block.rank], tiles[block.id]
                rows = np.minimum(np.searchsorted(steps, block.steps), len(steps) - 1)
                here = steps[rows] == block.steps
                if self._is_timely:
                    here &= ~block.late
                order = np.argsort(series)
                lines = order[np.searchsorted(series, ids[layout.columns], sorter=order)]
                of_block = np.full(int(here.sum()), block.rank)
                yield _Piece(
                    layout, of_block, rows[here], values[lines][:, here].T, block.measured_at_ms[here],
                    block.skipped[here],
                )  # fmt: skip

    def _from_frames(self, plan: int, of_rank: dict[int, _Layout]) -> Iterator[_Piece]:
        """The frames of one plan that are loose; of each only the bytes that are wanted."""
        by_span: dict[tuple[int, int], list[_Layout]] = {}
        for layout in self._of_plan[plan]:
            by_span.setdefault((layout.begin, layout.length), []).append(layout)
        first, last = min(of_rank), max(of_rank)
        for (begin, length), layouts in sorted(by_span.items()):
            values = func.substr(FrameRow.values, begin * 4 + 1, length * 4)
            fields = FrameRow.rank, FrameRow.sequence, FrameRow.step, FrameRow.measured_at_ms, FrameRow.skipped, values
            for at in range(0, len(self._loose), _STEPS_A_QUERY):
                query = (
                    select(*fields)
                    .where(FrameRow.attempt_id == self._attempt_id, FrameRow.plan == plan)
                    .where(FrameRow.rank >= first, FrameRow.rank <= last)
                    .where(FrameRow.step.in_(self._loose[at : at + _STEPS_A_QUERY]))
                )
                if self._is_timely:
                    query = query.where(FrameRow.late.is_(False))
                rows = self._session.execute(query).all()
                for layout in layouts:
                    mine = [row for row in rows if of_rank.get(row[0]) is layout]
                    if mine:
                        yield _piece(layout, mine, self._window.steps)


def _piece(layout: _Layout, frames: list[Any], steps: Ids) -> _Piece:
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


def _layouts(plans: Sequence[StoredPlan], columns: Columns) -> list[_Layout]:
    """The layouts of the wanted columns in these plans; plans of the same series share one."""
    if not len(columns.ids):
        return []
    sorter = np.argsort(columns.ids, kind="stable")
    alike: dict[tuple[int, int], list[StoredPlan]] = {}
    for plan in plans:
        if len(plan.series):
            alike.setdefault((plan.number, id(plan.series)), []).append(plan)  # equal ones are one array
    found = (_layout(group, columns.ids, sorter) for group in alike.values())
    return [layout for layout in found if layout is not None]


def _layout(plans: Sequence[StoredPlan], ids: Ids, sorter: NDArray[np.int64]) -> _Layout | None:
    """The layout of plans of the same number and series, lowest rank first."""
    series = plans[0].series
    places = np.minimum(np.searchsorted(ids, series, sorter=sorter), len(sorter) - 1)
    targets = sorter[places]
    picks = np.flatnonzero(ids[targets] == series)
    if not len(picks):
        return None
    begin, end = int(picks[0]), int(picks[-1]) + 1
    counts = None
    if any(plan.counts is not None for plan in plans):
        ones = np.ones(len(picks), np.int64)
        counts = np.stack([ones if plan.counts is None else plan.counts[picks] for plan in plans])
    ranks = np.array([plan.rank for plan in plans], np.int64)
    return _Layout(plans[0].number, begin, end - begin, picks - begin, targets[picks], ranks, counts)


def _has_any(plan: StoredPlan, columns: Columns) -> bool:
    return bool(np.isin(plan.series, columns.ids).any())


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


def _loose_steps(session: Session, attempt_id: int, *, first: int, last: int) -> list[int]:
    query = select(FrameRow.step).where(
        FrameRow.attempt_id == attempt_id, FrameRow.step >= first, FrameRow.step <= last
    )
    return list(session.scalars(query.distinct()))
