"""Bands: the run's own baselines, and when they are taken; the bands an optimizer promises."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema import grid
from internist.schema.conditions import BASELINE_MINIMUM_POINTS

Floats = NDArray[np.float32]

GRID_PER_OCTAVE = 8
"""Baselines are taken anew when the age of the run crosses the next of this many points per doubling: a baseline is at
most 9 % of the run's age old, which under growth like the square root of steps is 5 % of its value."""
GROWTH_LIMIT = 2.0
"""Largest slope of log value over log age that is carried forward: of a product of two weights that grow linearly."""
WINDOW_POINTS = 256
"""Points of one plan that are enough for a baseline."""
GRID_STEPS = 2 * grid.PER_OCTAVE
"""Samples at the start lie on a geometric grid with at most so many points below each step."""
SPREAD_DEVIATIONS = 6.0
"""Robust standard deviations of a window's log values about its trend that are well: of 10,000 points that are normal
in the logarithm not one is farther."""
SPREAD_EXTREMES = 1.5
"""Times as far as a window's own extreme is well: heavy tails repeat themselves."""
SPREAD_LIMIT = 4.0
"""log2 of the widest that a window's own spread may make a band: one mad point must not blind a check for an octave."""
GROWN_UP = 256
"""Last step of a window, in steps since the origin, from which a band is as wide as the window makes it. A younger run
learns its first features, by which values grow and fall many times: its bands are wider"""
YOUTH = 2.0
"""by this power of how much younger it is."""
ROUNDING = 1e-8
"""Updates and their effects below this are lost in the rounding of float32 numbers of order 0.1: a bias in front of a
normalisation layer has such ones, up and down by any factor. They make no baseline."""
_TO_NORMAL = np.float32(0.7413)
"""From the distance between the quartiles to the standard deviation of a normal distribution."""
_TO_NOW = math.log2(8 / 3)
"""From the middle of the window, at 3/8 of the age, to now."""
MUON_WIDENING = 0.05
MUON_CRITICAL = 1.5


def baseline_window(step: int, *, origin: int, taken: int) -> tuple[int, int] | None:
    """Steps, both inclusive, whose points make the baselines with which `step` is judged; None: those at hand stay.

    Args:
        step: the step that is to be judged next.
        origin: first judged step of the attempt. Windows lie in [age / 4, age / 2] after it, so that a run that is
            watched from a late step has baselines as soon as one that is watched from its start.
        taken: `grid_point` at which baselines were last taken; -1 never.
    """
    age = step - origin
    if age < 4 * BASELINE_MINIMUM_POINTS or grid_point(age) <= taken:
        return None
    return origin + -(-age // 4), origin + age // 2


def grid_point(age: int) -> int:
    """Number of grid points that a run of this age in steps has crossed; -1 at its start."""
    return math.floor(GRID_PER_OCTAVE * math.log2(age)) if age > 0 else -1


def youth(age: int) -> float:
    """log2 of how much wider bands are, on either side, that a window makes which ends at this age."""
    return YOUTH * max(0.0, math.log2(GROWN_UP / max(age, 1)))


def window_sample(steps: NDArray[np.int64], *, every: int, origin: int) -> NDArray[np.int64]:
    """Which of the stored steps of one plan make a baseline: at most WINDOW_POINTS, evenly spread.

    Those of the grid of some class, and while every class has its geometric one, those that lie no closer than that
    has them. Steps of a dense stretch (a directive in an incident) are left out, for they would outnumber
    the rest.
    """
    early = steps - origin < GRID_STEPS * every
    kept = [steps[~early & on_grid(steps, every=every)]]
    last = None
    for step in steps[early].tolist():
        if last is None or step - last >= min((last - origin) // GRID_STEPS, every) or step % every == 0:
            kept.append(np.array([step], np.int64))
            last = step
    chosen = np.sort(np.concatenate(kept)).astype(np.int64)
    if chosen.size <= WINDOW_POINTS:
        return chosen
    return np.take(chosen, np.linspace(0, chosen.size - 1, WINDOW_POINTS).round().astype(np.int64))


def on_grid(steps: NDArray[np.int64], *, every: int) -> NDArray[np.bool_]:
    """Which steps the grid of some class of samples holds, without any stretch."""
    powers = np.frexp(np.maximum(steps - 1, 1).astype(np.float64))[1] - 1
    spacing = np.maximum(1, (1 << powers.astype(np.int64)) // grid.PER_OCTAVE)
    is_young = spacing < every * grid.HEAVY_EVERY * grid.MATRIX_ROTATION
    on: NDArray[np.bool_] = (is_young & (steps % spacing == 0)) | ((spacing >= every) & (steps % every == 0))
    return on


def baselines(values: Floats) -> Floats:
    """Median of each row over its finite points. Zero where it is not positive, NaN with too few positive points.

    Args:
        values: (series, points), NaN where a series has no point.
    """
    if not values.size:
        return np.full(len(values), np.nan, np.float32)
    enough = np.count_nonzero(values > 0, axis=1) >= BASELINE_MINIMUM_POINTS
    ordered = np.sort(values, axis=1)  # NaN last
    counts = values.shape[1] - np.count_nonzero(np.isnan(values), axis=1)
    rows = np.arange(len(values))
    middle = np.maximum(counts, 1)
    median = (ordered[rows, (middle - 1) // 2] + ordered[rows, middle // 2]) / np.float32(2)
    median = np.where(
        np.isfinite(median) & (median > 0), median, np.where(counts >= BASELINE_MINIMUM_POINTS, 0, np.nan)
    )
    return np.where(enough | (median == 0), median, np.nan).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a window says of each row besides its level, in log2."""

    growth: Floats
    """How much the row will have grown from the middle of its window to now if it goes on; negative: fallen."""
    above: Floats
    below: Floats
    """How far above and below its trend a value of the row is well, by the window's own spread."""
    samples: Floats
    """How many values it has,"""
    scatter: Floats
    """and their standard deviation about their trend."""


def window_shape(values: Floats, ages: NDArray[np.int64]) -> Shape:
    """Growth and spread of each row of a window.

    Growth is the least-squares slope of log value over log age, less its standard error, at most GROWTH_LIMIT either
    way. What grows from zero in its first few hundred steps, as modules with a zero-initialised or small last layer
    do, would else be out of a band of a factor of 4 while it is well. What is flat in its window gets no allowance: a
    late explosion is found as soon as without it, one from the first step on later.

    Spread is taken about that line: SPREAD_DEVIATIONS robust deviations (by the quartiles), or SPREAD_EXTREMES times
    the window's own extreme on that side where that is more.

    Args:
        values: (series, points), NaN where a series has no point.
        ages: (points,) in steps since the origin, positive.
    """
    growth, away = _trend(values, ages)
    above, below = _spread(away)
    known = np.isfinite(away)
    samples = np.count_nonzero(known, axis=1).astype(np.float32)
    squares = np.where(known, away, np.float32(0)) ** 2
    scatter = np.sqrt(squares.sum(axis=1) / np.maximum(samples, 1))
    return Shape(growth, above, below, samples, scatter.astype(np.float32))


def carried_growth(values: Floats, ages: NDArray[np.int64]) -> Floats:
    """The growth of `window_shape` alone."""
    return _trend(values, ages)[0]


def _trend(values: Floats, ages: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Growth of each row, and how far its points are from its line, NaN where there is none."""
    positive = np.isfinite(values) & (values > 0)
    x = np.log2(np.maximum(ages, 1)).astype(np.float32)
    x -= x.mean()
    y = np.log2(np.where(positive, values, np.float32(1)))
    weight = positive.astype(np.float32)
    count = np.maximum(weight.sum(axis=1), 1)
    middle = y.sum(axis=1) / count
    y = (y - middle[:, None]) * weight
    mean_x = weight @ x / count
    spread = weight @ (x * x) - count * mean_x**2
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (y @ x) / spread
        residual = np.maximum((y * y).sum(axis=1) - slope**2 * spread, 0) / np.maximum(count - 2, 1)
        sure = np.maximum(np.abs(slope) - np.sqrt(residual / spread), 0)
    growth = np.sign(slope) * np.minimum(sure, GROWTH_LIMIT)
    growth = np.where(np.isfinite(growth) & (count >= 3), growth * _TO_NOW, 0).astype(np.float32)
    line = np.where(np.isfinite(slope), slope, 0)[:, None] * (x - mean_x[:, None])
    away = np.where(positive, y - line, np.float32(np.nan)).astype(np.float32)
    return growth, away


def _spread(away: Floats) -> tuple[Floats, Floats]:
    """How far each row goes above and below its middle; zero where it has no points."""
    if not away.size:
        none = np.zeros(len(away), np.float32)
        return none, none
    ordered = np.sort(away, axis=1)  # NaN last
    counts = away.shape[1] - np.count_nonzero(np.isnan(away), axis=1)
    last = np.maximum(counts - 1, 0)
    rows = np.arange(len(away))
    lowest, lower, middle, upper, highest = (ordered[rows, last * part // 4] for part in range(5))
    deviation = SPREAD_DEVIATIONS * _TO_NORMAL * (upper - lower)
    sides = (np.maximum(deviation, SPREAD_EXTREMES * side) for side in (highest - middle, middle - lowest))
    above, below = (np.where(counts > 0, np.minimum(side, SPREAD_LIMIT), 0).astype(np.float32) for side in sides)
    return above, below


def muon_band(
    *,
    rate: NDArray[np.float64],
    scale: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    decayed: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest R(dW) of a step W <- W - rate * (alpha * msign + decay * W), before widening.

    The singular values of what the optimizer takes for msign lie in [low, high]; weight decay moves the largest of the
    sum by no more than its own norm (triangle inequality).

    Args:
        rate: learning rate of the group.
        scale: alpha * sqrt(fan_in / fan_out), so that rate * scale is R of an exact msign.
        low: smallest singular value that the orthogonalisation leaves; `high` the largest.
        decayed: rate * decay * R(W), what decoupled weight decay adds or takes.
    """
    return np.maximum(rate * scale * low - decayed, 0.0), rate * scale * high + decayed
