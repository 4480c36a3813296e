"""The decisions of the proofs of muP, as pure functions: where a loss is lowest, how far that moves, what it costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.scaling.exponents import Point, fit, verdict
from internist.schema.scaling import Axis, ScalingVerdict

Grid = Mapping[float, Sequence[float]]
"""Learning rate to its final losses by seed, the same seeds at every rate. A run that diverged has no finite loss."""

WINDOW = 1.0
"""Octaves on either side of the best rate of the grid that the parabola is fitted to."""
CAP = 0.5
"""Nats above the same seed's loss at the best rate beyond which a loss counts as no worse, as does a run that
diverged."""
DRAWS = 2_000
STEP = 0.5
"""One √2 step, in octaves."""
REGRET = 0.02
"""Nats that a transferred rate may cost."""
MOST_RATES = 16
"""Rates after which a search for the best gives up."""


@dataclass(frozen=True)
class Optimum:
    """The minimum of a parabola in log2 of the learning rate, with an offset for each seed."""

    at: float
    """log2 of the best rate."""
    loss: float
    """Mean loss there, in nats."""
    curvature: float
    """Nats per octave squared: within the window the loss is `loss + curvature (x - at)²`."""
    window: tuple[float, float]
    """Ends of what was fitted, log2 of rates."""
    tried: tuple[NDArray[np.float64], NDArray[np.float64]]
    """log2 of all rates in order, and their mean losses."""
    draws: NDArray[np.float64]
    """`at` of bootstrap samples; NaN where a sample has no minimum."""
    curvatures: NDArray[np.float64]
    """Of the same samples."""

    @property
    def interval(self) -> tuple[float, float]:
        """90 % interval of `at`; without bounds if a tenth of the samples have no minimum."""
        return _interval(self.draws)


@dataclass(frozen=True)
class Shift:
    """How far the best rate moved from one model to another, and what it costs to keep the old one."""

    octaves: float
    low: float
    high: float
    """90 % interval, in octaves."""
    regret: float
    """Loss at the old rate minus that at the new best one, in nats."""
    regret_low: float
    regret_high: float
    """90 % interval."""

    @property
    def is_transfer(self) -> bool:
        """The interval lies within one √2 step, and the regret is under 0.02 nats."""
        return self.low >= -STEP and self.high <= STEP and self.regret < REGRET

    @property
    def is_failure(self) -> bool:
        """The interval lies beyond one √2 step, or that of the regret beyond 0.02 nats."""
        return self.low > STEP or self.high < -STEP or self.regret_low >= REGRET

    @property
    def is_two_steps(self) -> bool:
        """The interval lies beyond two √2 steps."""
        return self.low >= 2 * STEP or self.high <= -2 * STEP


def transfer_verdict(planned: Sequence[Shift], standard: Shift) -> ScalingVerdict:
    """PASS where the planned rule's best rate stays at every size, FAIL where at some it certainly does not; but
    INCONCLUSIVE where the standard parametrisation does not move by two steps over the same range.

    Args:
        planned: from the base to each other size.
        standard: from the base to the largest size.
    """
    if any(each.is_failure for each in planned):
        return "FAIL"
    return "PASS" if standard.is_two_steps and all(each.is_transfer for each in planned) else "INCONCLUSIVE"


@dataclass(frozen=True)
class Slope:
    """The exponent of a quantity in a size, and whether it is the expected one."""

    exponent: float
    low: float
    high: float
    """90 % interval."""
    verdict: ScalingVerdict
    bends: bool
    """Whether a straight line through small sizes would mislead about larger ones."""

    def __str__(self) -> str:
        return f"{self.exponent:+.2f} ± {(self.high - self.low) / 2:.2f} {self.verdict}"


def slope(values: Mapping[int, Sequence[float]], axis: Axis, *, expected: float = 0.0) -> Slope | None:
    """The exponent, by the scaling check's own fit; None with fewer than three sizes or a value that has no logarithm.

    Args:
        values: size to the quantity by seed, the same seeds at every size.
        expected: its exponent under the right rule.
    """
    if len(values) < 3 or not all(math.isfinite(v) and v > 0 for each in values.values() for v in each):
        return None
    points = [
        Point(size if axis == "width" else 1, size if axis == "depth" else 1, seed, math.log(value))
        for size, each in values.items()
        for seed, value in enumerate(each)
    ]
    found = fit(points)[axis]
    return Slope(found.exponent, *found.interval(0.9), verdict(found, expected), found.bends)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; NaN where one is none."""
    if not all(math.isfinite(value) and value > 0 for value in values):
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def mean_losses(grid: Grid) -> dict[float, float]:
    """Rate to mean loss; infinity where a run diverged."""
    means = {}
    for rate, losses in grid.items():
        mean = float(np.mean(losses))
        means[rate] = mean if math.isfinite(mean) else math.inf
    return means


def optimum(grid: Grid, *, seed: int = 0) -> Optimum:
    """The minimum of the least-squares parabola over the rates within `WINDOW` of the grid's best.

    Its uncertainty is a residual bootstrap: the fit's residuals, scaled for the parameters it used, are drawn with
    replacement and the parabola is fitted again. What the parabola does not fit is in the residuals, and so in the
    interval.

    Raises:
        ValueError: fewer than three rates in the window, none worse than the best on one side, or no finite loss.
    """
    means = mean_losses(grid)
    best = min(means, key=lambda rate: (means[rate], rate))
    if not math.isfinite(means[best]):
        raise ValueError("expected a finite loss at some learning rate, all diverged")
    inside = sorted(rate for rate in grid if abs(math.log2(rate / best)) <= WINDOW + 1e-6)
    if best in (inside[0], inside[-1]):
        raise ValueError(f"the best learning rate {best:.4g} is at the edge of what was tried")
    n_seeds = len(grid[best])
    x = np.repeat([math.log2(rate / best) for rate in inside], n_seeds)
    worst = np.tile(grid[best], len(inside)) + CAP
    y = np.fmin([loss for rate in inside for loss in grid[rate]], worst)
    design = np.column_stack([x, x * x, np.tile(np.eye(n_seeds), (len(inside), 1))])
    solve = np.linalg.pinv(design)
    coefficients = solve @ y
    slope, curvature = coefficients[:2]
    if curvature <= 0:
        raise ValueError(f"the losses around learning rate {best:.4g} have no minimum")
    residuals = (y - design @ coefficients) * math.sqrt(len(y) / (len(y) - design.shape[1]))
    samples = design @ coefficients + np.random.default_rng(seed).choice(residuals, (DRAWS, len(y)))
    slopes, curvatures = (samples @ solve.T)[:, :2].T
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.where(curvatures > 0, -slopes / (2 * curvatures), np.nan)
    at, centre, rates = -slope / (2 * curvature), math.log2(best), sorted(means)
    return Optimum(
        at=float(centre + at),
        loss=float(coefficients[2:].mean() - curvature * at * at),
        curvature=float(curvature),
        window=(math.log2(inside[0]), math.log2(inside[-1])),
        tried=(np.log2(rates), np.array([means[rate] for rate in rates])),
        draws=centre + draws,
        curvatures=curvatures,
    )


def shift(base: Optimum, target: Optimum) -> Shift:
    """From the base's best rate to the target's.

    The regret is read from the target's parabola where the old rate is in its window, else from the straight lines
    between the rates that were tried; beyond those it is infinite. Both optima are drawn independently.
    """
    moved = target.draws - np.random.default_rng(1).permutation(base.draws)
    octaves = target.at - base.at
    costs = _regret(target, target.at - moved, target.curvatures, moved)
    (regret,) = _regret(target, np.array([base.at]), np.array([target.curvature]), np.array([octaves]))
    regret_low, regret_high = _interval(costs)
    return Shift(octaves, *_interval(moved), float(regret), regret_low, regret_high)


def _regret(
    target: Optimum, at: NDArray[np.float64], curvatures: NDArray[np.float64], moved: NDArray[np.float64]
) -> NDArray[np.float64]:
    low, high = target.window
    outside = np.interp(at, *target.tried, left=np.inf, right=np.inf) - target.loss
    return np.where((at >= low) & (at <= high), curvatures * moved**2, outside)


def rates_wanted(grid: Grid, first: Sequence[float]) -> list[float]:
    """The rates that are still to be tried: `first`; then on while the best is at an edge; then half steps beside it.

    Args:
        grid: what is known, each rate with all its seeds.
        first: the common grid, in factors of two.
    """
    missing = [rate for rate in first if not _has(grid, rate)]
    if missing:
        return missing
    if len(grid) >= MOST_RATES:
        return []
    means = mean_losses(grid)
    best = min(means, key=lambda rate: (means[rate], rate))
    if best == max(grid):
        return [best * 2.0]
    if best == min(grid):
        return [best / 2.0]
    around = [2.0 ** (round(2 * math.log2(best) + half) / 2) for half in (-2, -1, 1, 2)]
    return [rate for rate in around if not _has(grid, rate)]


def _has(grid: Grid, rate: float) -> bool:
    return any(math.isclose(known, rate, rel_tol=1e-6) for known in grid)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """5th and 95th percentile; a NaN lies beyond either end."""
    ends = [np.where(np.isnan(values), beyond, values) for beyond in (-np.inf, np.inf)]
    low, high = (np.quantile(end, at, method="nearest") for end, at in zip(ends, (0.05, 0.95), strict=True))
    return float(low), float(high)
