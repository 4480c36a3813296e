"""Drift: whether a series leaves its band if it goes on as it does, and when."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logs = NDArray[np.float32]
Flags = NDArray[np.bool_]

TOLERANCE = 0.5
"""Growth of log value per log age that is no drift: of a random walk, and of weights under a constant step size."""
MEMORY_OCTAVES = 0.15
"""Points that are this many doublings of the age older weigh half as much,"""
MEMORY_POINTS = 4.0
"""but never less than points that are this many points newer."""
THRESHOLD = 0.25
"""Page-Hinkley: log2 of the growth beyond tolerance that has to accumulate."""
MINIMUM_WEIGHT = 5.0
"""Points, each by its weight, that a slope needs."""
Z = 1.96
"""Half-width of intervals in standard errors (95 %)."""
HORIZON = 4.0
"""A crossing later than at this many times the present age is no news."""
_NEVER = 1e15


@dataclass(slots=True)
class Trends:
    """Regression of log2 value on log2 age for each check, older points fading, and its Page-Hinkley extremes.

    The sums are kept about the weighted means, so that float32 is enough. `lowest` is the least value of
    level - TOLERANCE * log2 age since the slope last was not positive; `highest` likewise for falls.
    """

    last: Logs
    weight: Logs
    mean_age: Logs
    mean_value: Logs
    steps: Logs
    products: Logs
    values: Logs
    lowest: Logs
    highest: Logs

    @classmethod
    def none(cls, size: int) -> "Trends":
        """`size` checks without a point."""
        start = {"lowest": np.inf, "highest": -np.inf}
        return cls(**{name: np.full(size, start.get(name, 0.0), np.float32) for name in FIELDS})

    def extended(self, size: int) -> "Trends":
        """The same with checks without a point appended up to `size`."""
        more = Trends.none(size - self.last.size)
        return Trends(**{name: np.concatenate([getattr(self, name), getattr(more, name)]) for name in FIELDS})


FIELDS = ("last", "weight", "mean_age", "mean_value", "steps", "products", "values", "lowest", "highest")


def observe(trends: Trends, *, age: int, logs: Logs, measured: Flags) -> None:
    """Takes in log2 of the values of one step, in place, where `measured`; `age` is in steps since the first judged.

    Page-Hinkley on increments d log value - TOLERANCE * d log age telescopes: its sum since any point is a difference
    of two levels, so that the largest sum is the level less the lowest one. The level here is that of the fitted line.
    """
    now = np.float32(np.log2(max(age, 1)))
    at = np.flatnonzero(measured)  # at most steps the loss alone
    last, kept, mean_age, mean_value, steps, products, values, lowest, highest = (
        getattr(trends, name)[at] for name in FIELDS
    )
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        older = (now - last) * np.float32(1 / MEMORY_OCTAVES)
        fade = np.exp2(-np.minimum(older, np.float32(1 / MEMORY_POINTS)))
        kept = kept * fade
        weight = kept + np.float32(1)
        by_step = now - mean_age
        by_value = logs[at] - mean_value
        share = kept / weight
        mean_age = mean_age + by_step / weight
        mean_value = mean_value + by_value / weight
        by_step_shared = share * by_step
        steps = steps * fade + by_step_shared * by_step
        products = products * fade + by_step_shared * by_value
        values = values * fade + share * by_value * by_value
        level = mean_value + _slope(steps, products) * (now - mean_age)
        tolerated = np.float32(TOLERANCE) * now
        up, down = level - tolerated, level + tolerated
        lowest = np.where(products <= 0, up, np.minimum(lowest, up))
        highest = np.where(products >= 0, down, np.maximum(highest, down))
    new = (now, weight, mean_age, mean_value, steps, products, values, lowest, highest)
    for name, array in zip(FIELDS, new, strict=True):
        getattr(trends, name)[at] = array


@dataclass(frozen=True, slots=True)
class Crossings:
    """Which checks drift, and the age at which each leaves its band, with its interval; NaN where none does."""

    drifts: Flags
    age: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def crossings(trends: Trends, *, high: Logs, low: Logs, start: Logs) -> Crossings:
    """Checks whose trend is surely beyond tolerance, has gone half of the way to the edge (in log2), and leaves the
    band within HORIZON times the present age. This is information: what is inside its band is well.

    Args:
        trends: of all checks.
        high: log2 of the upper edge as it is now; +inf or NaN: none.
        low: log2 of the lower edge; -inf or NaN: none.
        start: log2 of where the way to either edge begins.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        spread = trends.steps.astype(np.float64)
        slope = trends.products / spread
        residual = np.maximum(trends.values - slope * trends.products, 0) / np.maximum(trends.weight - 2, 1)
        error = Z * np.sqrt(residual / spread)
        known = (trends.weight >= MINIMUM_WEIGHT) & (spread > 0)
        tolerated = TOLERANCE * trends.last
        level = trends.mean_value + slope * (trends.last - trends.mean_age)
        rises = known & (slope - error > TOLERANCE) & (level - tolerated - trends.lowest > THRESHOLD)
        falls = known & (slope + error < -TOLERANCE) & (trends.highest - level - tolerated > THRESHOLD)
        distance = np.where(rises, high, low) - level
        edge = np.where(rises, high, low)
        is_far = np.abs(level - start) >= np.abs(edge - start) / 2
        ahead = is_far & ((rises & (distance > 0)) | (falls & (distance < 0)))
        steepest = slope + np.sign(slope) * error
        flattest = slope - np.sign(slope) * error
        now = trends.last.astype(np.float64)
        at, soon, late = (np.exp2(np.minimum(now + distance / s, 62.0)) for s in (slope, steepest, flattest))
        drifts = ahead & np.isfinite(distance) & (at <= HORIZON * np.exp2(now))
    none = np.where(drifts, 0.0, np.nan)
    return Crossings(drifts, *(np.minimum(x, _NEVER) + none for x in (at, soon, late)))


def _slope(steps: Logs, products: Logs) -> Logs:
    """Slope of the fitted line; zero where all points are at one step."""
    slope: Logs = np.where(steps > 0, products / np.maximum(steps, np.float32(1e-12)), np.float32(0))
    return slope
