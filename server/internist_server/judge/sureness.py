"""How sure a verdict is: how many values its band rests on, how many of their own deviations a value is away from
them, and how rarely one of as many alike would be."""

import math
from dataclasses import dataclass

import numpy as np

from internist_server.judge.checks import Checks
from internist_server.judge.evaluation import BASELINE
from internist_server.judge.memory import Memory


@dataclass(frozen=True, slots=True)
class Sureness:
    """What stands behind a band that is made of values."""

    samples: int
    """How many the band rests on."""
    deviations: float
    """How many of their standard deviations the value is from their middle, what they grow by allowed for."""

    @property
    def sure(self) -> float:
        """One less the chance at most that one more value like these lies so far away."""
        return 1 - chance(self.samples, self.deviations)


def chance(samples: int, deviations: float) -> float:
    """The most often that one more value lies so far from the mean of `samples` others that are alike.

    Nothing is assumed of how they are distributed. Of n + 1 values at most one in k^2 lies k or more of their standard
    deviations from their mean (Chebyshev), and where their order says nothing, each of them is as likely to have come
    last. So it is never less than 1 / (n + 1): few values make nobody sure.

    Args:
        samples: n, at least 1.
        deviations: of the n others, without the one that is looked at.

    Source: derived; the bound of Saw, Yang & Mo 1984 (The American Statistician 38(2)) for estimated moments.
    """
    if samples < 1 or math.isnan(deviations):
        return 1.0
    every = samples + 1
    if math.isinf(deviations):
        return 1 / every
    squared = deviations**2
    at_most = math.inf if squared == 0 else every * (every + squared) / (samples * squared)
    return min(1.0, max(1, math.floor(at_most)) / every) if math.isfinite(at_most) else 1.0


def of_check(memory: Memory, checks: Checks, check: int) -> Sureness | None:
    """Of a check at its last judged point; None where its band is not made of its own values."""
    if memory.basis[check] != BASELINE:
        return None
    place = np.flatnonzero(checks.recent == check)
    if place.size:
        return _of_recent(memory, checks, int(place[0]))
    samples, ratio = int(memory.samples[check]), float(memory.ratio[check])
    if samples < 1 or math.isnan(ratio):
        return None
    growth = float(memory.growth[check])
    beyond = max(ratio - max(growth, 0.0), 0.0) if ratio > 0 else max(min(growth, 0.0) - ratio, 0.0)
    return Sureness(samples, _over(beyond, float(memory.scatter[check])))


def _of_recent(memory: Memory, checks: Checks, place: int) -> Sureness | None:
    """Of a value of every step, beside its last values that were in their band."""
    values = memory.recent.values[place].astype(np.float64)
    values = values[np.isfinite(values)]
    now = float(memory.last[checks.column[checks.recent[place]]])
    if checks.recent_multiplies[place]:
        with np.errstate(divide="ignore", invalid="ignore"):
            values, now = np.log2(values[values > 0]), float(np.log2(now)) if now >= 0 else math.nan
    if not values.size:
        return None
    return Sureness(values.size, _over(abs(now - float(values.mean())), float(values.std())))


def _over(distance: float, deviation: float) -> float:
    if math.isnan(distance) or math.isnan(deviation):
        return math.nan
    if deviation > 0:
        return distance / deviation
    return math.inf if distance > 0 else 0.0
