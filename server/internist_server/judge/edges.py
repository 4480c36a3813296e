"""Edges: the band that each check was last judged by, in the unit of its values. Who draws, sends or says it reads it
here."""

import math

import numpy as np

from internist_server.judge.checks import Checks, Logs
from internist_server.judge.evaluation import EDGES, Bands
from internist_server.judge.memory import Memory

Edge = tuple[float | None, float | None]


class Edges:
    """Bands at the last judged point of each check."""

    def __init__(self, checks: Checks, memory: Memory, bands: Bands) -> None:
        self._checks, self._memory, self._bands = checks, memory, bands

    def of(self, check: int, *, is_critical: bool) -> Edge:
        """Lower and upper edge of a check's band; None where it has none.

        Args:
            check: its number.
            is_critical: the edges beyond which it is violated, else those beyond which it is no longer ok: of a value
                that is judged by its own baseline they are the same.
        """
        memory, is_one = self._memory, is_critical or not self._checks.alarms_on_warning[check]
        names = EDGES[2:] if is_one else EDGES[:2]
        low, high = (shown(getattr(memory, name)[check] * memory.unit[check]) for name in names)
        return low, high

    def ahead(self) -> tuple[Logs, Logs]:
        """The next edge above and below each check as log2 of its level: the warning one, or the critical one."""
        bands, ratio = self._bands, self._memory.ratio
        warn, critical = bands.highs
        high = np.where((ratio < warn) & np.isfinite(warn), warn, critical)
        warn, critical = bands.lows
        low = np.where((ratio > warn) & np.isfinite(warn), warn, critical)
        return bands.centre + high, bands.centre + low

    def start(self, high: Logs) -> Logs:
        """Where the way to an edge begins, as log2 of a level: at a baseline's centre; where the centre is itself an
        edge (targets), at a quarter of it."""
        return np.where(np.isnan(self._checks.target_centre), self._bands.centre, high - np.float32(2))


def shown(edge: np.float32) -> float | None:
    """The shortest number that is this float32, for people: 0.3, not 0.300000012; None for NaN."""
    return None if math.isnan(edge) else float(str(edge))
