"""Idle modules: experts that no token of a step came to. What a step did to them says nothing of how they are."""

from collections.abc import Sequence

import numpy as np

from internist_server.judge.checks import Flags, Indices
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
        self.columns: Flags = own >= 0
        """By column: whether a series is of such a module."""
        self._calls = np.flatnonzero(self.columns & (family == _OF_A_CALL))
        self._steps = np.flatnonzero(self.columns & np.isin(family, _OF_A_STEP))
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
