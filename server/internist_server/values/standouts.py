"""Which of several ranks is unlike the others; pure numpy."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SCATTERS: Final = 8.0
"""How many times the usual distance from the median a value may lie away before it stands out."""
LEAST_SHARE: Final = 0.01
"""Of the median, which no scatter is narrower than: float rounding makes nobody stand out."""
SLOWER: Final = 1.25
"""A rank that works so many times as long at a step as the others makes them wait."""
LEAST_RANKS: Final = 4
"""Of fewer nobody can say which is the usual one; what is not finite stands out of any number."""


def standing_out(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values are far from the others': not finite where others are, or beyond eight times the median distance
    from their median."""
    finite = np.isfinite(values)
    found = ~finite & finite.any()
    usual = values[finite]
    if len(usual) < LEAST_RANKS:
        return found
    centre = np.median(usual)
    distances = np.abs(usual - centre)
    scatter = max(float(np.median(distances)), LEAST_SHARE * abs(float(centre)) / SCATTERS)
    found[finite] = distances > SCATTERS * scatter
    return found


def slower(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which times are longer than the median of the others' by a quarter, and of four or more stand out of them."""
    if len(values) < 2:
        return np.zeros(len(values), dtype=bool)
    if len(values) >= LEAST_RANKS:
        return (values > SLOWER * np.median(values)) & standing_out(values)
    return np.array([value > SLOWER * np.median(np.delete(values, place)) for place, value in enumerate(values)])


def in_minority(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values are not the one that most have. Where two are as frequent nobody can say which is right: all are
    told."""
    distinct, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        return np.zeros(len(values), dtype=bool)
    most = counts == counts.max()
    return np.ones(len(values), dtype=bool) if most.sum() > 1 else ~most[which]
