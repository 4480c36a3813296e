"""Points of several series over spans of steps, each span told by a few numbers; pure numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPAN = 64
"""Steps that one entry stands for."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Spans:
    """One entry per span and series, each (spans, series); NaN where a span has no such point of a series."""

    steps: NDArray[np.int64]
    """(spans,) the last step of each."""
    low: Floats
    high: Floats
    """Of finite values."""
    mean: Floats
    last: Floats
    points: NDArray[np.int32]
    nonfinite: NDArray[np.int32]
    least: NDArray[np.float16]
    most: NDArray[np.float16]
    """The smallest and the largest log-ratio to the band."""
    value_at_least: Floats
    value_at_most: Floats
    """What was measured there."""


def spans_of(
    steps: NDArray[np.int64], values: Floats, present: NDArray[np.bool_], ratios: NDArray[np.float16]
) -> Spans:
    """Spans of `SPAN` steps each, the last of what is left.

    Args:
        steps: rising.
        values: (steps, series), and where they are `present`.
        ratios: (steps, series) log-ratios to the band, NaN where nothing was judged.
    """
    starts = np.arange(0, len(steps), SPAN)
    finite = present & np.isfinite(values)
    points = np.add.reduceat(present.astype(np.int32), starts)
    of_finite = np.add.reduceat(finite.astype(np.int32), starts)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        low = np.minimum.reduceat(np.where(finite, values, np.float32(np.inf)), starts)
        high = np.maximum.reduceat(np.where(finite, values, np.float32(-np.inf)), starts)
        mean = np.add.reduceat(np.where(finite, values, 0).astype(np.float64), starts) / of_finite
    nothing = of_finite == 0
    low[nothing] = high[nothing] = np.nan
    rows = np.maximum.reduceat(np.where(present, np.arange(len(steps))[:, None], -1), starts)
    columns = np.arange(values.shape[1])
    last = np.where(rows >= 0, values[rows, columns], np.float32(np.nan))
    is_judged = ~np.isnan(ratios)
    least = _extreme(np.where(is_judged, ratios, np.float16(np.inf)), starts, largest=False)
    most = _extreme(np.where(is_judged, ratios, np.float16(-np.inf)), starts, largest=True)
    ends = np.append(starts[1:], len(steps)) - 1
    return Spans(
        steps[ends], low, high, mean.astype(np.float32), last, points, points - of_finite,
        ratios[least, columns], ratios[most, columns], values[least, columns], values[most, columns],
    )  # fmt: skip


def _extreme(ratios: NDArray[np.float16], starts: NDArray[np.int64], *, largest: bool) -> NDArray[np.int64]:
    """Of each span and column, the row of the smallest or largest ratio; one without any where there is none."""
    ends = np.append(starts[1:], len(ratios))
    find = np.argmax if largest else np.argmin
    return np.array([begin + find(ratios[begin:end], axis=0) for begin, end in zip(starts, ends, strict=True)])
