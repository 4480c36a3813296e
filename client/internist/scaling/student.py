"""Student's t distribution: its quantiles, without a library for statistics."""

import math
from functools import lru_cache


@lru_cache(maxsize=256)
def quantile(probability: float, freedom: int) -> float:
    """The t that a Student variable stays under with this probability.

    Args:
        probability: over 1/2, under 1.
        freedom: degrees of freedom, 1 or more; infinite with none.

    Raises:
        ValueError: the probability is not between 1/2 and 1.
    """
    if not 0.5 < probability < 1:
        raise ValueError(f"expected a probability between 1/2 and 1, got {probability}")
    if freedom < 1:
        return math.inf
    within = 2 * probability - 1  # of |t|
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < within else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _share_within(angle: float, freedom: int) -> float:
    """Probability that |t| is under sqrt(freedom) * tan(angle).

    Source: Abramowitz & Stegun 1964, 26.7.3 (odd) and 26.7.4 (even).
    """
    cosine = math.cos(angle)
    term = cosine if freedom % 2 else 1.0
    total = term if freedom > 1 else 0.0
    for order in range(2 + freedom % 2, freedom, 2):
        term *= cosine * cosine * (order - 1) / order
        total += term
    value = math.sin(angle) * total
    return (angle + value) * 2 / math.pi if freedom % 2 else value
