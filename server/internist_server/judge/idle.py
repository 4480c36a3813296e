"""Idle modules: experts that no token of a step came to. What a step did to them says nothing of how they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from internist_server.judge.checks import Flags
from internist_server.judge.columns import Indices
from internist_server.judge.experts import experts_of
from internist_server.judge.series import JudgedSeries

_OF_A_STEP = ("gradient", "update")
"""Families of metrics that say what a step did to a parameter or by it."""
_OF_A_CALL = "activation"


class Idle:
    """Which modules a step may leave out: experts. One that was not called at a step, where another of its list was, is
    idle there.

    Args:
        series: all of them.
    """

    def __init__(self, series: Sequence[JudgedSeries]) -> None:
        members = experts_of(series)
        lists = sorted({name for name, _ in members.values()})
        experts = sorted(set(members.values()))
        number = {member: place for place, member in enumerate(experts)}
        self._list_of: Indices = np.array([lists.index(name) for name, _ in experts], np.int64)
        own = np.full(len(series), -1, np.int64)
        for column, member in members.items():
            own[column] = number[member]
        family = np.array([one.metric.partition(".")[0] for one in series])
        self._calls = np.flatnonzero((own >= 0) & (family == _OF_A_CALL))
        self._steps = np.flatnonzero((own >= 0) & np.isin(family, _OF_A_STEP))
        self._own = own

    def without(self, present: Flags) -> Flags:
        """What was measured at a step, less what a step did to modules that were idle there.

        Args:
            present: by column, whether measured.
        """
        if not self._steps.size:
            return present
        is_called = np.zeros(self._list_of.size, bool)
        is_called[self._own[self._calls[present[self._calls]]]] = True
        is_idle = ~is_called & np.isin(self._list_of, self._list_of[is_called])
        if not is_idle.any():
            return present
        kept = present.copy()
        kept[self._steps] &= ~is_idle[self._own[self._steps]]
        return kept

    def resting(self, seen: Indices, step: int, distances: NDArray[np.float64]) -> Flags:
        """By column, whether a series is of an expert that has not been called for a while: its silence is no fault.

        Args:
            seen: by column, step of the last point.
            step: the present one.
            distances: by column, steps between two points.
        """
        last, apart = np.full(self._list_of.size, -1, np.int64), np.full(self._list_of.size, np.inf)
        np.maximum.at(last, self._own[self._calls], seen[self._calls])
        np.minimum.at(apart, self._own[self._calls], distances[self._calls])
        is_resting = np.append(step - last > 2 * apart, False)  # the last stands for what is of no expert
        return np.asarray(is_resting[self._own])
