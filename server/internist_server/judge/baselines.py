"""Baselines: what each check's own past makes of its band, taken from windows and kept while the check is out of it."""

from dataclasses import dataclass

import numpy as np

from internist.schema.conditions import BASELINE_CRITICAL
from internist_server.alerts.lifecycle import INACTIVE
from internist_server.judge import bands
from internist_server.judge.checks import Checks, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.evaluation import Bands
from internist_server.judge.memory import NEVER, Memory
from internist_server.judge.own_rates import of_checks


def refresh(memory: Memory, checks: Checks, *, step: int, values: Logs, steps: Indices) -> None:
    """Take the baselines of all checks that are not out of their bands, before `step` is judged.

    Args:
        memory: of the judge.
        checks: the same.
        step: the step that will be judged next.
        values: (points, series), NaN where a series has no point.
        steps: step of each row.
    """
    memory.grid = bands.grid_point(step - memory.origin)
    if not len(values):
        return
    at = np.flatnonzero(checks.baselined & (memory.violation.phase == INACTIVE))
    points = np.ascontiguousarray(checks.judged(values)[at])
    is_out = (steps >= memory.out_first[at, None]) & (steps <= memory.out_last[at, None])
    points[is_out | (steps < memory.accepted[at, None])] = np.nan
    _take(memory, checks, at, points, steps, rates=values[:, checks.rate_columns])


def renew(memory: Memory, checks: Checks, check: int, *, values: Logs, steps: Indices) -> None:
    """Take the baseline of one check from the points of its excursion alone; earlier ones count no more."""
    is_out = memory.violation.phase[check] != INACTIVE
    memory.accepted[check] = (memory.violation if is_out else memory.warning).started[check]
    memory.out_first[check] = memory.out_last[check] = NEVER
    memory.baseline[check] = np.nan
    at = np.array([check])
    points = np.ascontiguousarray(checks.judged(values)[at])
    _take(memory, checks, at, points, steps, rates=values[:, checks.rate_columns])
    memory.growth[check] = 0.0  # an excursion has no trend


def bands_of(memory: Memory, checks: Checks) -> Bands:
    """The bands that the baselines and fixed targets make. What is divided by the learning rate has none while that
    still rises."""
    with np.errstate(divide="ignore"):
        own = np.log2(memory.baseline)
    own[~np.isfinite(own)] = np.nan
    if memory.schedule.is_warming_up:
        own[checks.scheduled] = np.nan
    centre = np.where(checks.baselined, own, checks.target_centre)
    narrow = np.float32(np.log2(BASELINE_CRITICAL))  # never narrower than that; targets have no spread
    above = np.maximum(memory.above - narrow, 0) + np.maximum(memory.growth, 0)
    below = np.maximum(memory.below - narrow, 0) + np.maximum(-memory.growth, 0)
    return Bands.of(checks, centre=centre, above=above, below=below)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What unscaled values must stay under: a multiple of their largest baseline, scaled up with the schedule only."""

    level: Logs
    """log2; NaN: none."""
    factor: Logs
    """log2 of the schedule's raw factor in the window of that baseline."""

    @classmethod
    def of(cls, memory: Memory) -> "Ceiling":
        """By the largest baselines so far."""
        narrow = np.float32(np.log2(BASELINE_CRITICAL))
        room = np.maximum(memory.above, narrow)
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.log2(memory.ceiling) + room
            return cls(level, np.log2(memory.ceiling_factor))

    def at(self, raw: float, offset: Logs) -> Logs:
        """log2 of the ceiling of each check at this raw factor of the schedule.

        Args:
            raw: the run's.
            offset: log2 of how far each check's own rate has moved from it.
        """
        if not raw > 0:
            return self.level
        risen = np.log2(np.float32(raw)) - self.factor + offset
        ceiling: Logs = np.add(self.level, np.maximum(risen, np.float32(0)))
        return ceiling


def _take(memory: Memory, checks: Checks, at: Indices, points: Logs, steps: Indices, *, rates: Logs) -> None:
    """Take centre, growth, spread and ceiling of these checks from their points (checks, points)."""
    ages = steps - memory.origin
    factors = memory.schedule.factors(rates.astype(np.float64))
    is_known = (factors >= memory.schedule.floor) & np.isfinite(factors)
    divisor = np.where(is_known, factors, np.nan).astype(np.float32)
    scheduled = checks.scheduled[at]
    unscaled = points[scheduled]
    middle = bands.baselines(unscaled)
    raw = middle * np.exp2(np.maximum(bands.carried_growth(unscaled, ages), 0))
    offsets = memory.own_rates.earlier(steps, rates.astype(np.float64), memory.schedule)
    group = checks.group[at]
    points[scheduled] /= divisor
    if offsets.any():
        points /= np.exp2(np.stack([of_checks(row, group) for row in offsets], axis=1)).astype(np.float32)
    taken, shape = bands.baselines(points), bands.window_shape(points, ages)
    taken[np.flatnonzero(scheduled)[middle < bands.ROUNDING]] = 0  # rounding's noise, that no one can be held to
    known = ~np.isnan(taken)
    memory.baseline[at[known]] = taken[known]
    memory.growth[at[known]] = shape.growth[known]
    memory.samples[at[known]], memory.scatter[at[known]] = shape.samples[known], shape.scatter[known]
    young, narrow = np.float32(bands.youth(int(ages.max()))), np.float32(np.log2(BASELINE_CRITICAL))
    memory.above[at[known]] = np.maximum(shape.above[known], narrow) + young
    memory.below[at[known]] = np.maximum(shape.below[known], narrow) + young
    reference = np.float32(np.nanmedian(divisor)) if np.isfinite(divisor).any() else np.float32(np.nan)
    memory.schedule.window = float(reference)
    memory.own_rates.window = np.median(offsets, axis=0)
    which = at[scheduled]
    own = np.exp2(of_checks(memory.own_rates.window, checks.group[which])).astype(np.float32)
    larger = raw > np.nan_to_num(memory.ceiling[which], nan=0.0)
    memory.ceiling[which] = np.where(larger, raw, memory.ceiling[which])
    memory.ceiling_factor[which] = np.where(larger, reference * own, memory.ceiling_factor[which])
