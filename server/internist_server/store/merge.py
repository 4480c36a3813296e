"""Parts of several ranks become one value per step and series; pure numpy.

On the wire `mean_square` and `sum_square` metrics carry squares; what leaves this file is the metric itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
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
class Parts:
    """What some ranks delivered, each (ranks, steps, columns): values as on the wire, where they are, what they count
    for."""

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


def merge(parts: Iterable[Parts], codes: Codes, *, steps: int) -> tuple[Floats, Mask]:
    """The merged values and where there are any.

    Args:
        parts: groups of ranks in rank order, all of the same steps and columns.
        codes: (columns,) how each column combines.
        steps: how many there are.

    Returns:
        values (steps, columns) float32, NaN where nothing was delivered or any part was NaN; present, of that shape.
    """
    groups = iter(parts)
    first = next(groups, None)
    second = next(groups, None)
    if first is not None and second is None and len(first.values) == 1:
        return _single(first, codes)
    merger = Merger((steps, len(codes)), codes)
    for group in chain((one for one in (first, second) if one is not None), groups):
        merger.add(group)
    return merger.result()


class Merger:
    """Merges group after group of ranks, in rank order, in the memory of one group."""

    def __init__(self, shape: tuple[int, int], codes: Codes) -> None:
        """A merger of values of this shape, (steps, columns)."""
        self._present = np.zeros(shape, dtype=bool)
        by_code = {code: np.flatnonzero(codes == code) for code in range(len(CODES))}
        self._roots = np.concatenate([by_code[_MEAN_SQUARE], by_code[_SUM_SQUARE]])
        self._combined: list[tuple[Ids, _Combination]] = []
        for columns, combination in (
            (np.concatenate([by_code[_MEAN_SQUARE], by_code[_MEAN]]), _Mean),
            (np.concatenate([by_code[_SUM_SQUARE], by_code[_SUM]]), _Sum),
            (by_code[_MAX], _Largest),
            (by_code[_FIRST], _First),
            (by_code[_DIFFERS], _Differs),
        ):
            if len(columns):
                self._combined.append((columns, combination((shape[0], len(columns)))))

    def add(self, parts: Parts) -> None:
        """Take the parts of the ranks that follow."""
        self._present |= parts.present.any(axis=0)
        with np.errstate(invalid="ignore", over="ignore"):
            for columns, combination in self._combined:
                here = parts.present[:, :, columns]
                values = parts.values[:, :, columns].astype(np.float64)
                combination.add(values, here, parts.counts[:, :, columns])

    def result(self) -> tuple[Floats, Mask]:
        """The merged values, and where there are any."""
        merged = np.full(self._present.shape, np.nan)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            for columns, combination in self._combined:
                merged[:, columns] = combination.result()
            merged[:, self._roots] = np.sqrt(merged[:, self._roots])
            values = merged.astype(np.float32)
        values[~self._present] = np.nan
        return values, self._present


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


def of_one_rank(values: Floats, codes: Codes) -> Floats:
    """Values of ranks as on the wire, (..., columns), as the metrics themselves: only squares need work."""
    squared = codes <= _SUM_SQUARE
    found = values.copy()
    with np.errstate(invalid="ignore"):
        found[..., squared] = np.sqrt(values[..., squared].astype(np.float64))
    return found


def _single(part: Parts, codes: Codes) -> tuple[Floats, Mask]:
    """What one rank tells alone."""
    values = of_one_rank(np.where(part.present[0], part.values[0], np.float32(np.nan)), codes)
    alone = codes == _DIFFERS
    values[:, alone] *= np.float32(0)  # nobody to differ from; NaN stays what it is
    return values, part.present[0]


_Values = NDArray[np.float64]


class _Combination(Protocol):
    """How values of some columns become one."""

    def add(self, values: _Values, here: Mask, counts: _Values, /) -> None:
        """Take values (ranks, steps, columns) where they are here, and what each counts for."""
        ...

    def result(self) -> _Values:
        """The values (steps, columns)."""
        ...


class _Mean:
    """By what the values count for."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._total, self._weight = np.zeros(shape), np.zeros(shape)

    def add(self, values: _Values, here: Mask, counts: _Values, /) -> None:
        self._total += np.where(here, values * counts, 0.0).sum(axis=0)
        self._weight += np.where(here, counts, 0.0).sum(axis=0)

    def result(self) -> _Values:
        return self._total / self._weight


class _Sum:
    """All of them."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._total = np.zeros(shape)

    def add(self, values: _Values, here: Mask, _: _Values, /) -> None:
        self._total += np.where(here, values, 0.0).sum(axis=0)

    def result(self) -> _Values:
        return self._total


class _Largest:
    """NaN where one of them is."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._largest = np.full(shape, -np.inf)

    def add(self, values: _Values, here: Mask, _: _Values, /) -> None:
        self._largest = np.maximum(self._largest, np.where(here, values, -np.inf).max(axis=0))

    def result(self) -> _Values:
        return self._largest


class _First:
    """The lowest rank's; a NaN of any rank shows."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._first, self._is_known, self._is_bad = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)

    def add(self, values: _Values, here: Mask, _: _Values, /) -> None:
        lowest = np.take_along_axis(values, here.argmax(axis=0)[np.newaxis], axis=0)[0]
        self._first = np.where(self._is_known, self._first, lowest)
        self._is_known |= here.any(axis=0)
        self._is_bad |= (here & np.isnan(values)).any(axis=0)

    def result(self) -> _Values:
        return np.where(self._is_bad, np.nan, self._first)


class _Differs:
    """1 where two ranks sent different values, 0 where all are the same."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._least, self._most = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, values: _Values, here: Mask, _: _Values, /) -> None:
        self._least = np.minimum(self._least, np.where(here, values, np.inf).min(axis=0))
        self._most = np.maximum(self._most, np.where(here, values, -np.inf).max(axis=0))

    def result(self) -> _Values:
        is_bad = np.isnan(self._least) | np.isnan(self._most)
        return np.where(is_bad, np.nan, (self._least < self._most).astype(np.float64))
