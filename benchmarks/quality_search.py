"""The decisions of the quality benchmark, as pure functions: the next learning rate, an interval, a share in a band."""

import math
import statistics
from collections.abc import Mapping, Sequence

STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""0.975 quantile of Student's t by degrees of freedom."""


def best_rate(losses: Mapping[float, float]) -> float:
    """The learning rate of the lowest loss; of equal ones the lowest rate. A loss that is no number is the worst."""
    return min(losses, key=lambda rate: (_order(losses[rate]), rate))


def next_rate(losses: Mapping[float, float], start: float, *, coarse: float, fine: float) -> float | None:
    """The rate that a search tries next, or None once the best has a worse neighbour within `fine` on both sides.

    The grid goes up and down from `start` in factors of `coarse` until its best is not at an edge; then rates a factor
    of `fine` beside the best are added, and the best of all is looked at again.

    Args:
        losses: rate to the loss it gave. NaN counts as the worst.
        start: the first rate, positive.
        coarse, fine: factors above 1; `coarse` a power of `fine`, so that rates coincide.
    """
    if not losses:
        return start
    best = best_rate(losses)
    for factor in (coarse, fine):
        for rate in (best * factor, best / factor):
            beyond = [known for known in losses if (known > best) == (rate > best) and known != best]
            wanted = not beyond if factor == coarse else not any(_same(known, rate) for known in losses)
            if wanted:
                return rate
    return None


def at_edge(losses: Mapping[float, float]) -> bool:
    """Whether the best of a grid is its lowest or its highest rate."""
    return best_rate(losses) in (min(losses), max(losses))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t); one value has no width: NaN.

    Raises:
        ValueError: no values, or more than the table of t goes to.
    """
    if not 1 <= len(values) <= max(STUDENT_T) + 1:
        raise ValueError(f"expected 1 to {max(STUDENT_T) + 1} values, got {len(values)}")
    mean = statistics.fmean(values)
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return mean, math.nan
    return mean, STUDENT_T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def band_share(values: Sequence[float], low: float, high: float) -> float:
    """Share of the values in [low, high]; NaN is outside.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("expected values, got none")
    return sum(low <= value <= high for value in values) / len(values)


def _order(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)
