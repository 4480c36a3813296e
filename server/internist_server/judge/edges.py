"""Edges: the band of each check as it is now, in the unit of its values."""

import numpy as np

from internist_server.judge.checks import Checks, Logs
from internist_server.judge.evaluation import SANITY, Bands, Evaluator
from internist_server.judge.memory import Memory


class Edges:
    """Edges of the warning bands at the last judged step."""

    def __init__(self, checks: Checks, memory: Memory, evaluator: Evaluator, bands: Bands) -> None:
        self._checks, self._memory, self._bands = checks, memory, bands
        self._evaluator = evaluator
        self._muon = {int(check): place for place, check in enumerate(checks.muon.check)}

    def of(self, check: int) -> tuple[float | None, float | None]:
        """Lower and upper edge of one check's warning band; None where it has none.

        The sanity band is on the ratio of two other series; its edge here is the value that would be just sane if this
        module's mean change grew with its largest one.
        """
        checks, memory = self._checks, self._memory
        if memory.basis[check] == SANITY:
            return None, float(memory.last[checks.column[check]] / np.exp2(memory.ratio[check]))
        if check in self._muon:
            band, place = self._evaluator.muon_band(memory.schedule, memory.last), self._muon[check]
            centre, high, low = float(band.centre[place]), float(band.half[place]), -float(band.low[place])
        else:
            centre = float(self._bands.centre[check])
            centre += float(np.log2(memory.schedule.divisor)) if checks.scheduled[check] else 0.0
            high, low = float(self._bands.highs[0][check]), float(self._bands.lows[0][check])
        if np.isnan(centre):
            return None, None
        return None if np.isinf(low) else float(np.exp2(centre + low)), float(np.exp2(centre + high))

    def ahead(self) -> tuple[Logs, Logs]:
        """The next edge above and below each check as log2 of its level: the warning one, or the critical one."""
        bands, ratio = self._bands, self._memory.ratio
        high = np.where(ratio < bands.highs[0], *bands.highs)
        low = np.where(ratio > bands.lows[0], *bands.lows)
        return bands.centre + high, bands.centre + low
