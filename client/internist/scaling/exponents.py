"""Exponents of a quantity in width and depth: least squares in logarithms, intervals, equivalence, curvature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.scaling.student import quantile
from internist.schema.scaling import FEWEST_SIZES, MARGIN, Axis, ScalingVerdict

AXES: tuple[Axis, ...] = ("width", "depth")
_ROUNDING = 1e-12
"""Standard error that is as good as none."""


@dataclass(frozen=True, slots=True)
class Point:
    """The logarithm of a quantity of one member."""

    width: int
    depth: int
    seed: int | None
    log: float


@dataclass(frozen=True, slots=True)
class Fit:
    """An exponent, its uncertainty, and whether the points bend."""

    exponent: float
    standard_error: float
    freedom: int
    """Degrees of freedom of the standard error; 0: it is not known."""
    curvature: float | None = None
    """Second-order term of ln(value) over ln(size); None with fewer than four sizes."""
    bends: bool = False
    """The second-order term differs from zero (95 %), and the slope at the largest size differs from the exponent by
    more than the margin."""

    def interval(self, level: float) -> tuple[float, float]:
        """The confidence interval of this level, from Student's t."""
        reach = quantile(0.5 + level / 2, self.freedom) * self.standard_error if self.freedom else math.inf
        return self.exponent - reach, self.exponent + reach


def fit(points: Sequence[Point]) -> dict[Axis, Fit]:
    """The exponents of a quantity: coefficients of the joint regression of its logarithm on ln(width) and ln(depth).

    Members of one seed are not independent over sizes. Where seeds are shared, the logarithms are averaged over the
    members of a size first, and the residuals over sizes give the error; or, where that leaves more degrees of freedom
    (few sizes, many seeds, each trained at every size), every seed is fitted alone and the spread of those fits gives
    it. Which of the two is decided by the design, not by the values. Without shared seeds every member is a point.

    Args:
        points: of members whose value is positive and finite.

    Returns:
        An exponent for each axis that has at least two sizes; nothing where width and depth vary together so that
        their exponents cannot be told apart, or there are fewer sizes than exponents.

    Derived for this project: ordinary least squares with the interval b ± t(0.975, N - p) s / sqrt(Sxx).
    """
    axes = [axis for axis in AXES if len({_size(p, axis) for p in points}) > 1]
    if not axes:
        return {}
    shared = _seeds_are_shared(points)
    rows = _averages(points) if shared else list(points)
    design = _design(rows, axes)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    logs = np.array([row.log for row in rows])
    exponents, errors, freedom = _least_squares(design, logs)
    crosses = _seeds_cross_sizes(points)
    if shared and crosses and len({p.seed for p in points}) - 1 > freedom:
        exponents, errors, freedom = _by_seed(points, axes)
    found: dict[Axis, Fit] = {}
    for place, axis in enumerate(axes):
        curvature, bends = _curvature(_averages(points), axes, axis, float(exponents[place]))
        found[axis] = Fit(float(exponents[place]), float(errors[place]), freedom, curvature, bends)
    return found


def verdict(fit: Fit, expected: float, *, slack: float = 0.0) -> ScalingVerdict:
    """PASS where the 90 % interval lies within the margin of what is expected (two one-sided tests at 5 %), FAIL where
    the 95 % interval lies outside of it altogether, else INCONCLUSIVE.

    Args:
        slack: an exponent that is smaller by so much is well, too.

    Derived for this project.
    """
    floor = expected - slack - MARGIN
    low, high = fit.interval(0.9)
    if low >= floor and high <= expected + MARGIN:
        return "PASS"
    low, high = fit.interval(0.95)
    return "FAIL" if low > expected + MARGIN or high < floor else "INCONCLUSIVE"


def is_judgeable(points: Sequence[Point], axis: Axis) -> bool:
    """Whether an axis has the sizes to judge an exponent by."""
    return len({_size(p, axis) for p in points}) >= FEWEST_SIZES


def _size(point: Point, axis: Axis) -> int:
    return point.width if axis == "width" else point.depth


def _seeds_are_shared(points: Sequence[Point]) -> bool:
    """Whether some seed was trained at more than one size."""
    sizes: dict[int, set[tuple[int, int]]] = {}
    for p in points:
        if p.seed is not None:
            sizes.setdefault(p.seed, set()).add((p.width, p.depth))
    return any(len(of_seed) > 1 for of_seed in sizes.values())


def _seeds_cross_sizes(points: Sequence[Point]) -> bool:
    """Whether every seed was trained once at every size."""
    sizes = {(p.width, p.depth) for p in points}
    seeds = {p.seed for p in points}
    pairs = {(p.width, p.depth, p.seed) for p in points}
    return None not in seeds and len(pairs) == len(points) == len(sizes) * len(seeds)


def _averages(points: Sequence[Point]) -> list[Point]:
    """One point for each size: the mean over its members."""
    groups: dict[tuple[int, int], list[float]] = {}
    for p in points:
        groups.setdefault((p.width, p.depth), []).append(p.log)
    return [Point(width, depth, None, math.fsum(v) / len(v)) for (width, depth), v in sorted(groups.items())]


def _design(points: Sequence[Point], axes: Sequence[Axis]) -> NDArray[np.float64]:
    """(points, axes + 1): centred logarithms of the sizes, then ones."""
    columns = []
    for axis in axes:
        logs = np.log([float(_size(p, axis)) for p in points])
        columns.append(logs - logs.mean())
    return np.stack([*columns, np.ones(len(points))], axis=1)


def _least_squares(
    design: NDArray[np.float64], logs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Coefficients, their standard errors, degrees of freedom."""
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ logs
    freedom = len(logs) - design.shape[1]
    residual = logs - design @ coefficients
    spread = math.sqrt(float(residual @ residual) / freedom) if freedom > 0 else 0.0
    errors = np.maximum(spread * np.linalg.norm(inverse, axis=1), _ROUNDING)
    return coefficients, errors, max(0, freedom)


def _by_seed(points: Sequence[Point], axes: Sequence[Axis]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Mean over seeds of each seed's own coefficients, and the standard error of that mean."""
    fits = []
    for seed in sorted({p.seed for p in points if p.seed is not None}):
        own = [p for p in points if p.seed == seed]
        fits.append(np.linalg.pinv(_design(own, axes)) @ np.array([p.log for p in own]))
    stacked = np.stack(fits)
    errors = np.maximum(stacked.std(axis=0, ddof=1) / math.sqrt(len(fits)), _ROUNDING)
    return stacked.mean(axis=0), errors, len(fits) - 1


def _curvature(points: Sequence[Point], axes: Sequence[Axis], axis: Axis, exponent: float) -> tuple[float | None, bool]:
    """Second-order term along an axis over the averages of sizes, and whether it would mislead."""
    if len({_size(p, axis) for p in points}) < FEWEST_SIZES + 1:
        return None, False
    design = _design(points, axes)
    centred = design[:, axes.index(axis)]
    design = np.column_stack([design, centred**2 - (centred**2).mean()])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None, False
    coefficients, errors, freedom = _least_squares(design, np.array([p.log for p in points]))
    second, error = float(coefficients[-1]), float(errors[-1])
    is_real = abs(second) > quantile(0.975, freedom) * error
    at_the_end = float(coefficients[axes.index(axis)]) + 2 * second * float(centred.max())
    return second, is_real and abs(at_the_end - exponent) > MARGIN
