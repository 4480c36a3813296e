"""The new normal: what a value is now is what it is held to from here on, since someone says so."""

from collections.abc import Sequence

import numpy as np

from internist_server.alerts.lifecycle import INACTIVE
from internist_server.judge import baselines
from internist_server.judge.checks import Checks, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.memory import Memory
from internist_server.judge.series import JudgedSeries


def check_of(series: int, every: Sequence[JudgedSeries], checks: Checks, memory: Memory) -> int | None:
    """The check of a series that is out of the band of its own past; None where there is none.

    Args:
        series: its id.
        every: all series.
        checks: of these.
        memory: where they stand.
    """
    by_itself = [*np.flatnonzero(checks.baselined).tolist(), *checks.recent.tolist()]
    found: int | None = next((check for check in by_itself if every[checks.column[check]].id == series), None)
    if found is None or max(memory.violation.phase[found], memory.warning.phase[found]) == INACTIVE:
        return None
    return found


def take(memory: Memory, checks: Checks, check: int, *, values: Logs, steps: Indices) -> None:
    """Hold a check to what it is now; its excursion is over.

    Args:
        memory: of the judge.
        checks: all of them.
        check: the one.
        values: (points, series) of its excursion.
        steps: step of each row.
    """
    if checks.baselined[check]:
        baselines.renew(memory, checks, check, values=values, steps=steps)
    else:
        (place,) = np.flatnonzero(checks.recent == check).tolist()
        own = checks.judged(values)[check]
        memory.recent.renew(place, own, multiplies=bool(checks.recent_multiplies[place]))
    memory.first[check] = memory.last[checks.column[check]]
    memory.warning, memory.violation = memory.warning.ended(check), memory.violation.ended(check)
    memory.ratio[check] = np.nan
