"""Spans of points and judgements of all series of one metric, so that long windows are drawn from few numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
from internist_server.store.blocks import pack_heads, split, unpack_whole
from internist_server.store.frames import steps_between
from internist_server.store.matrices import MAX_CELLS, read_matrix
from internist_server.store.merge import Ids
from internist_server.store.series import StoredSeries, columns_for, list_series
from internist_server.store.tile_tables import SummaryRow
from internist_server.values.planes import MAX_ITEMS, unpack
from internist_server.values.spans import SPAN, spans_of

BASES: Final = 5
"""What a judgement rests on is a number below this."""
_FLOATS: Final = ("low", "high", "mean", "last", "value_at_least", "value_at_most")
_COUNTS: Final = ("points", "nonfinite")
_RATIOS: Final = ("least", "most")
_KINDS: Final = dict.fromkeys(_FLOATS, "<f4") | dict.fromkeys(_COUNTS, "<i4") | dict.fromkeys(_RATIOS, "<f2")


_NEAR: Final = {"value_at_least": "low", "value_at_most": "high"}
"""What was measured where a ratio is smallest is mostly the smallest value: the bits in which they differ are few."""
APART: Final = 1 << 31
"""Stands beside the size of a row's head where that is so; earlier versions stored the values."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Spans of a metric's series over some steps."""

    series: Ids
    steps: Ids
    """The last of each span."""
    measured_at_ms: Ids
    """When that was measured."""
    bases: NDArray[np.int64]
    """How many judgements rested on each basis."""
    _fields: Mapping[str, bytes]
    _is_apart: bool
    """Whether values at extremes are stored as they differ from extremes."""

    def field(self, name: str) -> NDArray[Any]:
        """One of the fields of `values.spans.Spans`, (spans, series); who draws needs some of them."""
        shape = len(self.steps), len(self.series)
        found: NDArray[Any] = unpack([self._fields[name]], shape[0] * shape[1], _KINDS[name])[0].reshape(shape)
        return _apart(found, self.field(_NEAR[name])) if self._is_apart and name in _NEAR else found


@dataclass(frozen=True, slots=True)
class JudgedSteps:
    """Judgements of some steps, by series in the judge's order: ratios and bases, (steps, series)."""

    steps: Ids
    order: Ids
    ratios: NDArray[np.float16]
    basis: NDArray[np.uint8]


def add_summaries(session: Session, attempt_id: int, judged: JudgedSteps, *, after: int) -> None:
    """Keep the spans of the steps from `after` on up to the last of these, those that were not judged too."""
    segment = Segment(attempt_id, after + 1, int(judged.steps[-1]))
    measured = steps_between(session, segment, first=segment.first, last=segment.last)[:, 0]
    steps = np.union1d(measured, judged.steps)
    of_metric: dict[str, list[int]] = {}
    known = list_series(session, judged.order)
    for column, one in enumerate(known):
        of_metric.setdefault(one.metric, []).append(column)
    height = max(1, min(MAX_ITEMS * SPAN, MAX_CELLS) // len(steps))
    rows = []
    for metric, columns in of_metric.items():
        for begin in range(0, len(columns), height):
            chosen = columns[begin : begin + height]
            rows += _rows(session, attempt_id, metric, steps, [known[column] for column in chosen], judged, chosen)
    if rows:
        session.execute(insert(SummaryRow), rows)


def read_summaries(session: Session, segment: Segment, metric: str, *, first: int, last: int) -> list[Summary]:
    """The spans of a metric that end in a window of a segment, oldest first."""
    query = select(
        SummaryRow.count.label("size"), SummaryRow.width, SummaryRow.bases, SummaryRow.series, SummaryRow.spans
    ).where(
        SummaryRow.attempt_id == segment.attempt_id,
        SummaryRow.metric == metric,
        SummaryRow.last_step >= max(first, segment.first),
        SummaryRow.last_step <= min(last, segment.last),
    )
    found = []
    for row in session.execute(query.order_by(SummaryRow.last_step, SummaryRow.id)):
        size = int.from_bytes(row.spans[:4], "little")
        size, is_apart = size & ~APART, bool(size & APART)
        (series,) = unpack_whole(row.series, row.width, 1)
        steps, times = unpack_whole(row.spans[4 : 4 + size], row.size, 2)
        fields = dict(zip(_KINDS, split(row.spans[4 + size :], len(_KINDS)), strict=True))
        found.append(Summary(series, steps, times, np.frombuffer(row.bases, "<i8"), fields, is_apart))
    return found


def last_summarised(session: Session, attempt_id: int) -> int:
    """The last step of which there are spans; -1 without any."""
    found = session.scalar(select(func.max(SummaryRow.last_step)).where(SummaryRow.attempt_id == attempt_id))
    return -1 if found is None else int(found)


def _rows(
    session: Session,
    attempt_id: int,
    metric: str,
    steps: Ids,
    series: Sequence[StoredSeries],
    judged: JudgedSteps,
    columns: Sequence[int],
) -> list[dict[str, Any]]:
    """The row of some series of one metric; none where they have no point at these steps."""
    ids = np.array([one.id for one in series], np.int64)
    matrix = read_matrix(session, attempt_id, steps, columns_for(session, ids, series))
    ratios = np.full(matrix.values.shape, np.nan, np.float16)
    ratios[np.searchsorted(steps, judged.steps)] = judged.ratios[:, columns]
    here = matrix.present.any(axis=1) | ~np.isnan(ratios).all(axis=1)
    if not here.any():
        return []
    spans = spans_of(steps[here], matrix.values[here], matrix.present[here], ratios[here])
    times = matrix.measured_at_ms[np.searchsorted(steps, spans.steps)]
    head = pack_heads([spans.steps, times], [])
    told = {name: getattr(spans, name) for name in _KINDS}
    told |= {name: _apart(told[name], told[near]) for name, near in _NEAR.items()}
    body = pack_heads([], [array.ravel() for array in told.values()])
    counts = np.bincount(judged.basis[:, columns].ravel(), minlength=BASES)[:BASES].astype("<i8")
    return [
        {
            "attempt_id": attempt_id,
            "metric": metric,
            "first_step": int(steps[here][0]),
            "last_step": int(spans.steps[-1]),
            "count": len(spans.steps),
            "width": len(ids),
            "bases": counts.tobytes(),
            "series": pack_heads([ids], []),
            "spans": (len(head) | APART).to_bytes(4, "little") + head + body,
        }
    ]


def _apart(values: NDArray[Any], near: NDArray[Any]) -> NDArray[Any]:
    """The bits in which floats differ from others, or floats by those bits."""
    bits: NDArray[Any] = np.ascontiguousarray(values).view("<u4") ^ np.ascontiguousarray(near).view("<u4")
    return bits.view("<f4")
