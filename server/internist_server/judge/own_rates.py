"""Own rates: how far each parameter group's rate has moved away from the run's, as a schedule of its own means.

What a group's steps do follows its own rate. But a mistake in one group must not cancel: a rate that leaves the others
in one leap which nobody declared is not followed, and neither is one that rises to more than twice what it was when
warm-up was over.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import SCHEDULE_FLOOR, SCHEDULE_JUMP
from internist_server.judge.columns import Indices
from internist_server.judge.schedule import RESTART_ABOVE, Schedule

Floats = NDArray[np.float64]

PER_OCTAVE: Final = 8
"""Offsets are so many steps a doubling: a band that follows one is stored whenever it changes."""
_JUMP: Final = math.log2(SCHEDULE_JUMP)
_ABOVE: Final = math.log2(RESTART_ABOVE)


def _floats() -> Floats:
    return np.empty(0)


@dataclass(slots=True)
class OwnRates:
    """What is known of the groups beside the run's `Schedule`; all in log2, aligned with its groups."""

    leaps: list[tuple[int, int, float]] = field(default_factory=list)
    """Step, group, and how far it leapt away from the others."""
    raw: Floats = field(default_factory=_floats)
    """Each rate over its group's first one, as last seen."""
    highest: Floats = field(default_factory=_floats)
    """The largest of these while rates still rose."""
    window: Floats = field(default_factory=_floats)
    """Offsets in the window from which baselines were last taken."""
    run: float = math.nan
    run_highest: float = math.nan
    """The same of the run-wide factor."""

    def resize(self, groups: int) -> None:
        """Knows of that many groups from now on; those it knew come first and stay."""
        for name, fill in (("raw", np.nan), ("highest", np.nan), ("window", 0.0)):
            known = getattr(self, name)
            setattr(self, name, np.concatenate([known, np.full(groups - known.size, fill)]))

    def observe(self, step: int, schedule: Schedule) -> None:
        """Takes in the rates of a step, after the schedule has."""
        if not schedule.peak > 0:
            return
        raw, run = _raw(schedule, schedule.rates), math.log2(schedule.divisor)
        with np.errstate(divide="ignore", invalid="ignore"):
            unmeant = raw - self.raw - np.log2(schedule.meant)
            away = raw - self.raw - (run - self.run)
        leapt = (np.abs(unmeant) > _JUMP) & (np.abs(away) > _JUMP)
        if leapt.any() and not schedule.warming:
            self.leaps = [*self.leaps, *((step, group, float(away[group])) for group in np.flatnonzero(leapt).tolist())]
        is_new = np.isnan(self.highest) | schedule.warming
        self.highest = np.where(is_new, np.fmax(self.highest, raw), self.highest)
        if schedule.warming or math.isnan(self.run_highest):
            self.run_highest = run if math.isnan(self.run_highest) else max(self.run_highest, run)
        self.raw, self.run = raw, run

    def offsets(self) -> Floats:
        """(groups,) how far each rate has moved from the run's by now; zero where it has not, or is not followed."""
        if not self.raw.size or math.isnan(self.run):
            return np.zeros(self.raw.size)
        return self._offsets(self.raw, self.run, self._leapt(np.array([np.iinfo(np.int64).max]))[0])

    def earlier(self, steps: Indices, rates: Floats, schedule: Schedule) -> Floats:
        """(points, groups) the same at earlier points, whose rates these were; zero where a rate was not measured."""
        if not self.raw.size or math.isnan(self.run):
            return np.zeros((len(steps), self.raw.size))
        factors = np.maximum(schedule.factors(rates), schedule.floor)[:, None]
        return self._offsets(_raw(schedule, rates), np.log2(factors), self._leapt(steps))

    def _offsets(self, raw: Floats, run: Floats | float, leapt: Floats) -> Floats:
        followed = raw - leapt
        with np.errstate(invalid="ignore"):
            above = np.maximum(followed - self.highest - _ABOVE, 0) - np.maximum(run - self.run_highest - _ABOVE, 0)
            offsets = followed - run - np.maximum(above, 0)
        rounded = np.round(offsets * PER_OCTAVE) / PER_OCTAVE
        return np.where(np.isfinite(rounded), rounded, 0.0)

    def _leapt(self, steps: Indices) -> Floats:
        """(points, groups) sum of the leaps until then."""
        leapt = np.zeros((len(steps), self.raw.size))
        for step, group, far in self.leaps:
            leapt[:, group] += np.where(steps >= step, far, 0.0)
        return leapt


def of_checks(values: NDArray[Any], group: Indices, otherwise: float = 0.0) -> NDArray[Any]:
    """What is known by group, by check; `otherwise` where a check is of no single group."""
    known: NDArray[Any] = np.append(values, np.asarray(otherwise, values.dtype))  # the last stands for MISSING
    return known[group]


def _raw(schedule: Schedule, rates: Floats) -> Floats:
    """log2 of rates over their groups' first ones, not under SCHEDULE_FLOOR of the largest."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log2(np.maximum(rates, SCHEDULE_FLOOR * schedule.highest) / schedule.reference))
