"""Schedules that a run declares, as its series tell them: which change of a learning rate was meant."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from internist_server.judge.checks import Checks, Flags, Logs
from internist_server.judge.columns import MISSING, Indices
from internist_server.judge.series import JudgedSeries

MULTIPLIER = "schedule.multiplier"
RISE = "schedule.rise"


class Declared:
    """Where the declared multipliers of the groups' rates are, and whether they still rise.

    Args:
        series: all of them.
        checks: of these series.
    """

    def __init__(self, series: Sequence[JudgedSeries], checks: Checks) -> None:
        groups = {s.subject: c for c, s in enumerate(series) if s.metric == MULTIPLIER}
        subjects = [series[column].subject for column in checks.rate_columns.tolist()]
        self._columns: Indices = np.array([groups.get(subject, MISSING) for subject in subjects], np.int64)
        self._told = np.flatnonzero(self._columns != MISSING)
        self._rise = next((c for c, s in enumerate(series) if s.metric == RISE), MISSING)

    def multipliers(self, values: Logs, present: Flags) -> NDArray[np.float64]:
        """(groups,) what the schedule multiplies each rate by at this step; NaN where it does not tell."""
        found = np.full(self._columns.size, np.nan)
        at = self._told[present[self._columns[self._told]]]
        found[at] = values[self._columns[at]]
        return found

    def rise(self, values: Logs, present: Flags) -> float | None:
        """How many times larger the rates will be within the next hundred steps; None where it does not tell."""
        known = self._rise != MISSING and bool(present[self._rise])
        return float(values[self._rise]) if known else None
