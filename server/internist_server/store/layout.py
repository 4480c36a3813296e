"""Where the columns of a matrix lie in the values that the frames of an attempt carry.

Ranks of one model have the same series in the same places of their frames. Such a *layout* is worked out once for all
of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist_server.store.merge import Ids
from internist_server.store.series import NO_SERIES, Columns, StoredPlan


@dataclass(frozen=True, slots=True)
class Layout:
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
class Layouts:
    """Where columns lie in all plans of an attempt. Plans are never changed, so it holds until there are more."""

    plans: int
    """How many there are."""
    columns: Columns
    """The columns, followed by those of denominators that are not among them."""
    of_plans: tuple[Layout, ...]
    ranks: Ids
    """That have any of the columns, rising."""
    ratios: tuple[tuple[int, int], ...]
    """Columns of ratios, each with the column of its denominator."""

    @classmethod
    def of(cls, plans: Sequence[StoredPlan], columns: Columns) -> "Layouts":
        """Those of these columns."""
        columns = _with_denominators(columns)
        found = tuple(_layouts(plans, columns))
        ranks = np.unique(np.concatenate([one.ranks for one in found])) if found else np.empty(0, np.int64)
        return cls(len(plans), columns, found, ranks, tuple(_ratios(columns)))


def _layouts(plans: Sequence[StoredPlan], columns: Columns) -> list[Layout]:
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


def _layout(plans: Sequence[StoredPlan], ids: Ids, sorter: NDArray[np.int64]) -> Layout | None:
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
    return Layout(plans[0].number, begin, end - begin, picks - begin, targets[picks], ranks, counts)


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
