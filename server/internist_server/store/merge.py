"""Parts of several ranks become one value per step and series; pure numpy.

On the wire `mean_square` and `sum_square` metrics carry squares; what leaves this file is the metric itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from internist.schema.metrics import Bound, Combine, combine_of
from internist.schema.wire import Facts

CODES: Final[tuple[Combine, ...]] = ("mean_square", "sum_square", "mean", "max", "sum", "first", "differs")
"""A combination's number is its place here."""
_MEAN_SQUARE, _SUM_SQUARE, _MEAN, _MAX, _SUM, _FIRST, _DIFFERS = range(7)

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank delivered, each (steps, columns): values as on the wire, where they are, what they count for."""

    values: Floats
    present: Mask
    counts: NDArray[np.float64]


class Declared(Protocol):
    """What is known of a series that says how its parts combine."""

    @property
    def metric(self) -> str:
        """What is measured."""
        ...

    @property
    def bound(self) -> Bound:
        """What a value is to the true one."""
        ...

    @property
    def facts(self) -> Facts:
        """Its placement among them."""
        ...


def codes_of(series: Iterable[Declared]) -> Codes:
    """How each column's parts combine."""
    combined = (combine_of(one.metric, one.bound, one.facts.placement) for one in series)
    return np.array([CODES.index(combine) for combine in combined], dtype=np.uint8)


def merge(parts: Sequence[Part], codes: Codes) -> tuple[Floats, Mask]:
    """The merged values and where there are any.

    Args:
        parts: one per rank, in rank order, all of the same shape (steps, columns).
        codes: (columns,) how each column combines.

    Returns:
        values (steps, columns) float32, NaN where nothing was delivered or any part was NaN; present, of that shape.
    """
    if len(parts) == 1:
        return _single(parts[0], codes)
    present = np.logical_or.reduce([part.present for part in parts])
    merged = np.full(present.shape, np.nan)
    weights = np.zeros(present.shape)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        averaged = (codes == _MEAN_SQUARE) | (codes == _MEAN)
        added = (codes == _SUM_SQUARE) | (codes == _SUM)
        for columns, combine in (
            (averaged, _add_weighted),
            (added, _add),
            (codes == _MAX, _keep_largest),
            (codes == _FIRST, _keep_first),
            (codes == _DIFFERS, _compare),
        ):
            if columns.any():
                merged[:, columns], weights[:, columns] = combine(parts, columns)
        merged[:, averaged] /= weights[:, averaged]
        squared = (codes == _MEAN_SQUARE) | (codes == _SUM_SQUARE)
        merged[:, squared] = np.sqrt(merged[:, squared])
        values = merged.astype(np.float32)
    values[~present] = np.nan
    return values, present


def divide(values: Floats, present: Mask, pairs: Iterable[tuple[int, int]]) -> None:
    """Make ratios of merged values, in place.

    Args:
        pairs: column of a numerator, which becomes the ratio, and of its denominator. Where the denominator is not
            present the value is the ratio already; where it is zero there is none.
    """
    for column, under in pairs:
        both = present[:, column] & present[:, under]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            ratio = values[:, column] / values[:, under]
        is_empty = both & (values[:, under] == 0)
        values[both, column] = ratio[both]
        values[is_empty, column] = np.nan
        present[is_empty, column] = False


def _single(part: Part, codes: Codes) -> tuple[Floats, Mask]:
    """Of one rank alone only the squares need work."""
    squared = codes <= _SUM_SQUARE
    values = np.where(part.present, part.values, np.float32(np.nan))
    with np.errstate(invalid="ignore"):
        values[:, squared] = np.sqrt(values[:, squared].astype(np.float64))
    alone = codes == _DIFFERS
    values[:, alone] *= np.float32(0)  # nobody to differ from; NaN stays what it is
    return values, part.present


_Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def _add_weighted(parts: Sequence[Part], columns: Mask) -> _Pair:
    shape = parts[0].values[:, columns].shape
    total, weight = np.zeros(shape), np.zeros(shape)
    for part in parts:
        here = part.present[:, columns]
        counts = np.where(here, part.counts[:, columns], 0.0)
        total = total + np.where(here, part.values[:, columns].astype(np.float64) * counts, 0.0)
        weight = weight + counts
    return total, weight


def _add(parts: Sequence[Part], columns: Mask) -> _Pair:
    total = np.zeros(parts[0].values[:, columns].shape)
    for part in parts:
        total = total + np.where(part.present[:, columns], part.values[:, columns].astype(np.float64), 0.0)
    return total, np.ones_like(total)


def _keep_largest(parts: Sequence[Part], columns: Mask) -> _Pair:
    largest = np.full(parts[0].values[:, columns].shape, -np.inf)
    for part in parts:  # np.maximum keeps a NaN of either side
        largest = np.maximum(largest, np.where(part.present[:, columns], part.values[:, columns], -np.inf))
    return largest, np.ones_like(largest)


def _keep_first(parts: Sequence[Part], columns: Mask) -> _Pair:
    """The lowest rank's value; a NaN of any rank shows."""
    first = np.full(parts[0].values[:, columns].shape, np.nan)
    is_bad = np.zeros(first.shape, dtype=bool)
    for part in reversed(parts):
        here = part.present[:, columns]
        first = np.where(here, part.values[:, columns], first)
        is_bad |= here & np.isnan(part.values[:, columns])
    first[is_bad] = np.nan
    return first, np.ones_like(first)


def _compare(parts: Sequence[Part], columns: Mask) -> _Pair:
    """1 where two ranks sent different values, 0 where all are the same."""
    shape = parts[0].values[:, columns].shape
    least, most = np.full(shape, np.inf), np.full(shape, -np.inf)
    for part in parts:
        here, values = part.present[:, columns], part.values[:, columns].astype(np.float64)
        least = np.minimum(least, np.where(here, values, np.inf))
        most = np.maximum(most, np.where(here, values, -np.inf))
    found = (least < most).astype(np.float64)
    found[np.isnan(least) | np.isnan(most)] = np.nan
    return found, np.ones(shape)
