"""Layers x steps of one metric: how far each row was from its band at each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from sqlalchemy.orm import Session

from internist.schema.conditions import CRITERIA, Basis
from internist.schema.metrics import METRICS
from internist.schema.views import Number
from internist.schema.windows import Heatmap, HeatmapRow
from internist_server.patterns import searcher
from internist_server.store.attempts import Attempt, Segment, lineage
from internist_server.store.judgements import JudgedWindow, count_judged, read_judged
from internist_server.store.matrices import MAX_CELLS, read_matrix
from internist_server.store.merge import Floats, Ids
from internist_server.store.numbers import rows_of_numbers
from internist_server.store.series import Columns, StoredSeries, columns_for, metrics_of_run, search_series
from internist_server.store.summaries import Summary, read_summaries
from internist_server.store.thinning import bucket_starts, strongest

Collapse = Literal["blocks", "modules"]
BASES: Final[tuple[Basis | None, ...]] = (None, "target", "reference", "baseline", "sanity")
"""A basis' number in stored judgements is its place here."""
_WEAKEST_FIRST: Final[tuple[int, ...]] = (3, 4, 2, 1)
_LONG: Final = 32
"""Judged steps a pixel from which on spans of 64 steps are drawn instead of steps; what is most severe of each is
kept."""
_WIDE: Final = 16
"""The same where there are many series: a span is four pixels wide then,"""
_MANY_CELLS: Final = 1_000_000
"""of so many judged values."""
_CALMEST: Final = np.float32(-1e30)
_PREFERRED: Final = ("update.own", "activation.rms", "weight.operator_norm")


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows are wanted."""

    collapse: Collapse = "blocks"
    opened: frozenset[str] = frozenset()
    """Blocks that have a row for each of their modules, whatever others have."""
    subject: str | None = None
    """A regular expression that is searched for in subjects: a row for each that matches."""
    limit: int = 100_000

    def row_of(self, series: StoredSeries) -> str:
        """The row that a series belongs to."""
        block = series.facts.block
        is_whole = self.collapse == "blocks" and self.subject is None and block not in self.opened
        return block or series.subject if is_whole else series.subject


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows over some steps: of each row the ratio that is most severe, and its value."""

    steps: Ids
    ratios: Floats
    values: Floats


def read_heatmap(
    session: Session,
    attempt: Attempt,
    *,
    metric: str | None,
    first: int,
    last: int,
    pixels: int,
    wanted: Rows,
) -> Heatmap:
    """The heat map of a metric; without one, of the first that says most.

    Raises:
        Invalid: the pattern for subjects is none.
    """
    judged = {criterion.metric for criterion in CRITERIA}
    drawn = judged.intersection(metrics_of_run(session, attempt.run))
    drawable = tuple(name for name in METRICS if name in drawn)
    chosen = metric or next((name for name in (*_PREFERRED, *drawable) if name in drawable), "")
    all_members = _members(search_series(session, attempt.run, metrics=[chosen]), wanted)
    kept = list(all_members.items())[: wanted.limit]
    found = [one for _, of_row in kept for one in of_row]
    columns = columns_for(session, np.array([one.id for one in found], dtype=np.int64), found)
    members = _places(kept)
    is_two_sided = any(criterion.two_sided for criterion in CRITERIA if criterion.metric == chosen)
    pieces: list[_Piece] = []
    bases = np.zeros(len(BASES), dtype=np.int64)
    of_rows = list(members.values())
    for segment in reversed(lineage(session, attempt)):
        begin = first
        judged_steps = count_judged(session, segment, first=first, last=last)
        is_wide = judged_steps * len(found) > _MANY_CELLS
        is_long = judged_steps >= (_WIDE if is_wide else _LONG) * pixels
        if is_long or max(first, segment.first) < segment.fine_from:
            spans_end = last if is_long else min(last, segment.fine_from - 1)
            for summary in read_summaries(session, segment, chosen, first=first, last=spans_end):
                bases += summary.bases
                pieces.append(_collapse_spans(summary, columns.ids, of_rows, is_two_sided=is_two_sided))
                begin = max(begin, int(summary.steps[-1]) + 1)
        for window in read_judged(session, segment, columns.ids, first=begin, last=last):
            bases += np.bincount(window.basis.ravel(), minlength=len(BASES))[: len(BASES)]
            pieces += _collapse(session, segment, window, columns, of_rows, is_two_sided=is_two_sided)
    steps, ratios, values = _thinned(pieces, len(members), pixels, is_two_sided=is_two_sided)
    absent = np.isnan(ratios).T
    shown_ratios = rows_of_numbers(ratios.T.astype(np.float16), absent=absent)  # the precision they are stored in
    shown_values = rows_of_numbers(values.T, absent=absent)
    rows = tuple(
        _row(name, [found[place] for place in places], *row)
        for (name, places), *row in zip(members.items(), shown_ratios, shown_values, strict=True)
    )
    unit = METRICS[chosen].unit if chosen in METRICS else ""
    basis = next((BASES[number] for number in _WEAKEST_FIRST if bases[number]), None)
    return Heatmap(
        attempt.run, attempt.name, chosen, unit, tuple(steps.tolist()), rows, basis, drawable, len(all_members)
    )


def _members(found: Sequence[StoredSeries], wanted: Rows) -> dict[str, list[StoredSeries]]:
    """The series of each row, rows in forward order."""
    holds = None if wanted.subject is None else searcher(wanted.subject, what="subjects")
    members: dict[str, list[StoredSeries]] = {}
    for one in found:
        if holds is None or holds(one.subject):
            members.setdefault(wanted.row_of(one), []).append(one)
    return members


def _places(members: Sequence[tuple[str, Sequence[StoredSeries]]]) -> dict[str, list[int]]:
    """Places of the series of each row, where they stand one row after the other."""
    places: dict[str, list[int]] = {}
    begin = 0
    for name, of_row in members:
        places[name] = list(range(begin, begin + len(of_row)))
        begin += len(of_row)
    return places


def _collapse(
    session: Session,
    segment: Segment,
    window: JudgedWindow,
    columns: Columns,
    members: Sequence[Sequence[int]],
    *,
    is_two_sided: bool,
) -> list[_Piece]:
    """Rows of a window, without the steps at which the metric was not judged."""
    judged = ~np.isnan(window.ratios).all(axis=1)
    steps, all_ratios = window.steps[judged], window.ratios[judged].astype(np.float32)
    height = max(1, MAX_CELLS // max(1, len(columns.ids)))
    pieces = []
    for begin in range(0, len(steps), height):
        ratios = all_ratios[begin : begin + height]
        matrix = read_matrix(session, segment.attempt_id, steps[begin : begin + height].tolist(), columns)
        rows = _worst_of_rows(ratios, matrix.values, members, is_two_sided=is_two_sided)
        pieces.append(_Piece(matrix.steps, *rows))
    return pieces


def _collapse_spans(summary: Summary, ids: Ids, members: Sequence[Sequence[int]], *, is_two_sided: bool) -> _Piece:
    """Rows of spans, of each of which the most severe judgement speaks."""
    least, most = summary.field("least").astype(np.float32), summary.field("most").astype(np.float32)
    is_least = _severity(least, is_two_sided=is_two_sided) > _severity(most, is_two_sided=is_two_sided)
    shape = (len(summary.steps), len(ids))
    ratios, values = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids, summary.series, sorter=order), len(ids) - 1)
    is_known = ids[order[at]] == summary.series
    places = order[at[is_known]]
    ratios[:, places] = np.where(is_least, least, most)[:, is_known]
    of_spans = np.where(is_least, summary.field("value_at_least"), summary.field("value_at_most"))
    values[:, places] = of_spans[:, is_known]
    rows = _worst_of_rows(ratios, values, members, is_two_sided=is_two_sided)
    judged = ~np.isnan(rows[0]).all(axis=1)
    return _Piece(summary.steps[judged], rows[0][judged], rows[1][judged])


def _worst_of_rows(
    ratios: Floats, values: Floats, members: Sequence[Sequence[int]], *, is_two_sided: bool
) -> tuple[Floats, Floats]:
    """Of each row the ratio of its members that is most severe, and its value."""
    shape = (len(ratios), len(members))
    row_ratios, row_values = np.empty(shape, np.float32), np.empty(shape, np.float32)
    lines = np.arange(len(ratios))
    alone = [row for row, places in enumerate(members) if len(places) == 1]
    of_alone = [members[row][0] for row in alone]
    row_ratios[:, alone], row_values[:, alone] = ratios[:, of_alone], values[:, of_alone]
    for row, places in enumerate(members):
        if len(places) == 1:
            continue
        of_row = ratios[:, places]
        worst = _severity(of_row, is_two_sided=is_two_sided).argmax(axis=1)
        row_ratios[:, row] = of_row[lines, worst]
        row_values[:, row] = values[:, places][lines, worst]
    return row_ratios, row_values


def _thinned(pieces: Sequence[_Piece], rows: int, pixels: int, *, is_two_sided: bool) -> tuple[Ids, Floats, Floats]:
    """All pieces as one, at most `pixels` steps wide; a bucket shows the most severe of it."""
    if not pieces:
        return np.empty(0, np.int64), np.empty((0, rows), np.float32), np.empty((0, rows), np.float32)
    steps = np.concatenate([piece.steps for piece in pieces])
    ratios = np.concatenate([piece.ratios for piece in pieces])
    values = np.concatenate([piece.values for piece in pieces])
    starts = bucket_starts(steps, pixels)
    if len(starts) == len(steps):
        return steps, ratios, values
    picks = strongest(_severity(ratios, is_two_sided=is_two_sided), starts)
    lasts = np.append(starts[1:], len(steps)) - 1
    columns = np.arange(ratios.shape[1])
    return steps[lasts], ratios[picks, columns], values[picks, columns]


def _severity(ratios: Floats, *, is_two_sided: bool) -> Floats:
    """How much a ratio says. Where only large values are wrong, small ones are the calm ones, however small."""
    severity = np.abs(ratios) if is_two_sided else np.maximum(ratios, _CALMEST)
    return np.where(np.isnan(ratios), np.float32(-np.inf), severity)


def _row(
    name: str, series: Sequence[StoredSeries], ratios: tuple[Number, ...], values: tuple[Number, ...]
) -> HeatmapRow:
    return HeatmapRow(
        subject=name,
        block=series[0].facts.block,
        order=min(one.facts.order for one in series),
        series=tuple(one.id for one in series),
        ratios=ratios,
        values=values,
    )
