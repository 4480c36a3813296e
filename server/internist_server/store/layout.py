"""Where the columns of a matrix lie in the values that the frames of an attempt carry."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist_server.store.merge import Ids
from internist_server.store.series import NO_SERIES, Columns, StoredPlan


@dataclass(frozen=True, slots=True)
class Span:
    """Where wanted columns lie in the values of one rank's plan: `length` floats from `begin` on."""

    rank: int
    plan: int
    begin: int
    length: int
    picks: NDArray[np.int64]
    columns: NDArray[np.int64]
    counts: Ids | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where columns lie in all plans of an attempt. Plans are never changed, so it holds until there are more."""

    plans: int
    """How many there are."""
    columns: Columns
    """The columns, followed by those of denominators that are not among them."""
    spans: tuple[Span, ...]
    ratios: list[tuple[int, int]]
    """Columns of ratios, each with the column of its denominator."""

    @classmethod
    def of(cls, plans: Sequence[StoredPlan], columns: Columns) -> "Layout":
        """The layout of these columns."""
        columns = _with_denominators(columns)
        spans = tuple(span for span in (span_of(plan, columns) for plan in plans) if span is not None)
        return cls(len(plans), columns, spans, _ratios(columns))

    @property
    def is_of_one_rank(self) -> bool:
        """Whether one rank alone has any of the columns: then nothing is merged."""
        return len({span.rank for span in self.spans}) < 2


def span_of(plan: StoredPlan, columns: Columns) -> Span | None:
    """Where columns lie in a plan; None where it has none of them."""
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
    return Span(plan.rank, plan.number, begin, end - begin, picks - begin, targets[picks], counts)


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
