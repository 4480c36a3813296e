"""What charts are drawn from: windows of series at a pixel budget, and what is known of each series now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from internist.schema.metrics import METRICS
from internist.schema.windows import Band, Points, PointsPage, SeriesPage, SeriesView
from internist_server.errors import Invalid
from internist_server.patterns import searcher
from internist_server.store.attempts import LAST_STEP, Attempt, Segment, lineage
from internist_server.store.bands import band_of, read_edges
from internist_server.store.judgements import load_order, places_in, read_judged
from internist_server.store.matrices import read_history, read_matrix
from internist_server.store.merge import Floats, Ids, Mask
from internist_server.store.numbers import number, numbers
from internist_server.store.outlines import Outline, outline_series
from internist_server.store.ranks import list_ranks
from internist_server.store.series import Columns, StoredSeries, columns_for, search_series
from internist_server.store.summaries import read_summaries
from internist_server.store.thinning import Extent, thin

MAX_WINDOWS = 512
"""Series of one answer."""
Preferred = Literal["first", "largest"]
S = TypeVar("S", StoredSeries, Outline)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Judgements by step, and by column unless of one."""

    ratios: NDArray[np.float16]
    basis: NDArray[np.uint8]
    edges: Floats

    def of(self, column: int) -> "_Judged":
        return _Judged(self.ratios[:, column], self.basis[:, column], self.edges[:, column])

    def at(self, rows: Mask) -> "_Judged":
        return _Judged(self.ratios[rows], self.basis[rows], self.edges[rows])

    def band(self, values: Floats, picks: Ids) -> Band | None:
        return band_of(values[picks], self.ratios[picks], self.basis[picks], self.edges[picks])


def read_series(
    session: Session,
    attempt: Attempt,
    *,
    metrics: Sequence[str] | None = None,
    subject: str | None = None,
    kind: str | None = None,
    prefer: Preferred = "first",
    limit: int,
    offset: int = 0,
) -> SeriesPage:
    """Series of a run that match, in forward order, with their last values.

    Args:
        metrics: names, or all.
        subject: a regular expression that is searched for in subjects.
        prefer: which of more than `limit`: the first, or of each subject an equal share, of the largest last values.
    """
    if prefer == "largest":
        outlines = _matching(outline_series(session, attempt.run, metrics=metrics, kind=kind), subject)
        total = len(outlines)
        ids = [one.id for one in _largest(session, attempt, outlines, limit=limit)]
        page = search_series(session, attempt.run, ids=ids)[offset : offset + limit]
    else:
        found = search_series(session, attempt.run, metrics=metrics, kinds=None if kind is None else [kind])
        found = _matching(found, subject)
        total, page = len(found), found[offset : offset + limit]
    columns = columns_for(session, _ids(page), page)
    steps, values = _last_points(session, attempt, columns)
    views = (view_of(one, step, value) for one, step, value in zip(page, steps, values, strict=True))
    return SeriesPage(tuple(views), total)


def choose_series(
    session: Session,
    attempt: Attempt,
    *,
    ids: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
    subject: str | None = None,
    index: int | None = None,
) -> list[StoredSeries]:
    """Series of a run by id, or by metric and a regular expression for the subject.

    Raises:
        Invalid: neither ids nor metrics are given, an id is none of the run's, or there are too many.
    """
    if ids is None and metrics is None:
        raise Invalid("name the series: by `series` ids, or by `metric` and `subject`")
    found = search_series(session, attempt.run, ids=ids, metrics=metrics)
    if ids is not None:
        known = {one.id: one for one in found}
        unknown = [one for one in ids if one not in known]
        if unknown:
            raise Invalid(f"run {attempt.run!r} has no series {unknown[0]}")
        found = [known[one] for one in dict.fromkeys(ids)]
    found = _matching(found, subject)
    if index is not None:
        found = [one for one in found if one.index == index]
    if len(found) > MAX_WINDOWS:
        raise Invalid(f"{len(found)} series match; at most {MAX_WINDOWS} in one answer")
    return found


def read_points(
    session: Session,
    attempt: Attempt,
    chosen: Sequence[StoredSeries],
    *,
    first: int = 0,
    last: int = LAST_STEP,
    pixels: int,
    with_bands: bool = True,
) -> PointsPage:
    """Windows of series over the same steps, each at most `pixels` points wide; without their bands where nobody draws
    them."""
    segments = lineage(session, attempt)
    columns = columns_for(session, _ids(chosen), chosen)
    pieces = list(_pieces(session, segments, chosen, columns, first=first, last=last))
    if not pieces:
        windows = tuple(_empty(one) for one in chosen)
        return PointsPage(attempt.run, attempt.name, None, None, windows)
    steps = np.concatenate([piece.steps for piece in pieces])
    times = np.concatenate([piece.times for piece in pieces])
    values = np.concatenate([piece.values for piece in pieces])
    present = np.concatenate([piece.present for piece in pieces])
    extent = Extent.joined([piece.extent for piece in pieces])
    judged = _judged(session, segments, columns, steps) if with_bands else None
    windows = tuple(
        _window(
            one,
            steps,
            times,
            values[:, c],
            present[:, c],
            extent.at(np.s_[:, c]),
            judged and judged.of(c),
            pixels=pixels,
        )
        for c, one in enumerate(chosen)
    )
    measured = steps[present.any(axis=1)]
    ends = (int(measured[0]), int(measured[-1])) if len(measured) else (None, None)
    return PointsPage(attempt.run, attempt.name, ends[0], ends[1], windows)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Points over some steps, (steps, columns), or spans of them, each at its last step."""

    steps: Ids
    times: Ids
    values: Floats
    present: Mask
    extent: Extent


def _pieces(
    session: Session,
    segments: Sequence[Segment],
    chosen: Sequence[StoredSeries],
    columns: Columns,
    *,
    first: int,
    last: int,
) -> Iterator[_Piece]:
    """A window of a history, oldest first: spans where only those are left, points from there on."""
    for segment in reversed(segments):
        if max(first, segment.first) < segment.fine_from:
            coarse = min(last, segment.fine_from - 1)
            yield from _spans(session, segment, chosen, first=first, last=coarse)
        for matrix in read_history(session, [segment], columns, first=max(first, segment.fine_from), last=last):
            yield _Piece(matrix.steps, matrix.measured_at_ms, matrix.values, matrix.present, Extent.of(matrix.values))


def _spans(
    session: Session, segment: Segment, chosen: Sequence[StoredSeries], *, first: int, last: int
) -> Iterator[_Piece]:
    """Spans of several series as points, all on one axis of steps."""
    place = {one.id: column for column, one in enumerate(chosen)}
    found = [
        summary
        for metric in dict.fromkeys(one.metric for one in chosen)
        for summary in read_summaries(session, segment, metric, first=first, last=last)
    ]
    if not found:
        return
    steps = np.unique(np.concatenate([summary.steps for summary in found]))
    shape = (len(steps), len(chosen))
    times, present = np.zeros(len(steps), np.int64), np.zeros(shape, bool)
    values, low, high = (np.full(shape, np.nan, np.float32) for _ in range(3))
    nonfinite = np.zeros(shape, np.int64)
    for summary in found:
        rows = np.searchsorted(steps, summary.steps)
        times[rows] = summary.measured_at_ms
        known = [at for at, one in enumerate(summary.series.tolist()) if one in place]
        where = np.ix_(rows, np.array([place[int(summary.series[at])] for at in known], np.int64))
        for array, name in ((values, "last"), (low, "low"), (high, "high"), (nonfinite, "nonfinite")):
            array[where] = summary.field(name)[:, known]
        present[where] = summary.field("points")[:, known] > 0
    yield _Piece(steps, times, values, present, Extent(low, high, nonfinite))


def view_of(series: StoredSeries, last_step: int | None, last_value: float | None) -> SeriesView:
    """A series as readers see it."""
    metric = METRICS.get(series.metric)
    return SeriesView(
        id=series.id,
        metric=series.metric,
        unit=metric.unit if metric else "",
        kind=series.kind,
        subject=series.subject,
        index=series.index,
        bound=series.bound,
        facts=series.facts,
        last_step=last_step,
        last_value=number(last_value),
    )


def _window(
    series: StoredSeries,
    all_steps: Ids,
    times: Ids,
    values: Floats,
    present: Mask,
    extent: Extent,
    judged: _Judged | None,
    *,
    pixels: int,
) -> Points:
    steps, times, values = all_steps[present], times[present], values[present]
    judged, extent = judged and judged.at(present), extent.at(present)
    thinned = thin(steps, values, pixels, extent)
    is_thinned = thinned.is_thinned or bool((extent.low < extent.high).any())
    picks = thinned.picks
    empty = np.isnan(thinned.low)
    shown = numbers(values[picks])
    last_step, last_value = (int(steps[-1]), float(values[-1])) if len(steps) else (None, None)
    return Points(
        series=view_of(series, last_step, last_value),
        steps=tuple(steps[picks].tolist()),
        times_ms=tuple(times[picks].tolist()),
        values=shown,
        low=numbers(thinned.low, absent=empty) if is_thinned else shown,
        high=numbers(thinned.high, absent=empty) if is_thinned else shown,
        nonfinite=tuple(thinned.nonfinite.tolist()),
        band=None if judged is None else judged.band(values, picks),
        thinned=is_thinned,
    )


def _empty(series: StoredSeries) -> Points:
    return Points(view_of(series, None, None), (), (), (), (), (), (), None, False)


def _judged(session: Session, segments: Sequence[Segment], columns: Columns, steps: Ids) -> _Judged:
    """What was stored of the columns' judgements, aligned with `steps`."""
    ratios = np.full((len(steps), len(columns.ids)), np.nan, np.float16)
    basis = np.zeros(ratios.shape, np.uint8)
    edges = np.full((*ratios.shape, 4), np.nan, np.float32)
    for segment in segments:
        places = places_in(load_order(session, segment.attempt_id), columns.ids)
        divisors = np.full(len(steps), np.nan)
        is_mine = np.zeros(len(steps), bool)
        for window in read_judged(session, segment, columns.ids, first=int(steps[0]), last=int(steps[-1])):
            rows = np.searchsorted(steps, window.steps)
            rows = np.minimum(rows, len(steps) - 1)
            here = steps[rows] == window.steps
            ratios[rows[here]], basis[rows[here]] = window.ratios[here], window.basis[here]
            divisors[rows[here]], is_mine[rows[here]] = window.divisors[here], True
        if is_mine.any():
            last = int(steps[is_mine][-1])
            edges[is_mine] = read_edges(
                session, segment.attempt_id, places, steps[is_mine], divisors[is_mine], last=last
            )
    return _Judged(ratios, basis, edges)


def _ids(series: Sequence[StoredSeries] | Sequence[Outline]) -> Ids:
    return np.array([one.id for one in series], dtype=np.int64)


def _largest(session: Session, attempt: Attempt, series: Sequence[Outline], *, limit: int) -> Sequence[Outline]:
    """Of each subject an equal share of a limit: series whose last values are largest, NaN before all, in their own
    order; all of them where they are no more."""
    if len(series) <= limit:
        return series
    each = max(1, limit // len({one.subject for one in series}))
    _, values = _last_points(session, attempt, columns_for(session, _ids(series), series))
    heights = np.array([-np.inf if value is None else value for value in values])
    heights[np.isnan(heights)] = np.inf
    taken: dict[str, int] = {}
    kept = []
    for place in np.argsort(-heights, kind="stable").tolist():
        subject = series[place].subject
        taken[subject] = taken.get(subject, 0) + 1
        if taken[subject] <= each:
            kept.append(place)
    return [series[place] for place in sorted(kept)]


def _matching(found: list[S], subject: str | None) -> list[S]:
    """Those of some series whose subjects a regular expression matches."""
    if subject is None:
        return found
    holds = searcher(subject, what="subjects")
    matching = {name for name in {one.subject for one in found} if holds(name)}  # heads share their subject
    return [one for one in found if one.subject in matching]


def _last_points(session: Session, attempt: Attempt, columns: Columns) -> tuple[list[int | None], list[float | None]]:
    """The last step and value of each column in the history of the attempt."""
    steps: list[int | None] = [None] * len(columns.ids)
    values: list[float | None] = [None] * len(columns.ids)
    for segment in lineage(session, attempt):
        ranks = list_ranks(session, segment.attempt_id)
        newest = {step for rank in ranks for step in rank.plan_steps.values()}
        candidates = sorted(step for step in newest if segment.first <= step <= segment.last)
        matrix = read_matrix(session, segment.attempt_id, candidates[-64:], columns)
        if not len(matrix.steps):
            continue
        rows = len(matrix.steps) - 1 - matrix.present[::-1].argmax(axis=0)
        for column in np.flatnonzero(matrix.present.any(axis=0)).tolist():
            if steps[column] is None:
                steps[column] = int(matrix.steps[rows[column]])
                values[column] = float(matrix.values[rows[column], column])
    return steps, values
