"""Recent values: what comes at every step is judged by its own last values, of those that were in their band."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import (
    RECENT_FALL,
    RECENT_MINIMUM_POINTS,
    RECENT_POINTS,
    RECENT_RISE,
)
from internist_server.judge.bands import SPREAD_DEVIATIONS, SPREAD_EXTREMES

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

TAKEN_ANEW = 8
"""A band is taken anew after so many more values: it is stored whenever it changes."""
LEAST_RISE = 0.01
"""Share of the mean that is never a rise: the rounding of a loss that stands still is no scatter."""
LEAST_FALL = 0.5
LEAST_TIMES = 8.0
"""Times the median that are never much for what scatters in multiples: gradients grow that much when features form."""
_TO_NORMAL = 0.7413
"""From the distance between the quartiles to the standard deviation of a normal distribution."""


@dataclass(slots=True)
class Recent:
    """The last values of each check that is judged by them, and the band that they make, as levels."""

    values: Floats
    """(checks, RECENT_POINTS), in no order; NaN where there are fewer."""
    taken: Indices
    """Values taken so far."""
    centre: Floats
    """NaN: no band yet, or none in multiples, as of a loss that is not always positive."""
    low: Floats
    high: Floats
    """NaN: no such edge."""

    @classmethod
    def none(cls, size: int) -> "Recent":
        """`size` checks that have seen nothing."""
        return cls(
            np.full((size, RECENT_POINTS), np.nan, np.float32),
            np.zeros(size, np.int64),
            *(np.full(size, np.nan, np.float32) for _ in range(3)),
        )

    def extended(self, size: int) -> "Recent":
        """The same with checks appended up to `size`."""
        more = Recent.none(size - self.taken.size)
        return Recent(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in FIELDS))

    def take(self, values: Floats, taken: Flags, *, multiplies: Flags) -> None:
        """Take in one value of each check where `taken`; of NaN nothing is taken.

        Args:
            values: of this step.
            taken: those that were measured and in their band.
            multiplies: whether a check's scatter multiplies it.
        """
        for at in np.flatnonzero(taken & np.isfinite(values)).tolist():
            self.values[at, self.taken[at] % RECENT_POINTS] = values[at]
            self.taken[at] += 1
            if self.taken[at] >= RECENT_MINIMUM_POINTS and self.taken[at] % TAKEN_ANEW == 0:
                self._take_band(at, multiplies=bool(multiplies[at]))

    def renew(self, at: int, values: Floats, *, multiplies: bool) -> None:
        """Forget what a check was judged by; these are its values now."""
        fresh = Recent.none(1)
        for name in FIELDS:
            getattr(self, name)[at] = getattr(fresh, name)[0]
        kept = values[np.isfinite(values)][-RECENT_POINTS:]
        self.values[at, : kept.size] = kept
        self.taken[at] = kept.size
        if kept.size >= RECENT_MINIMUM_POINTS:
            self._take_band(at, multiplies=multiplies)

    def _take_band(self, at: int, *, multiplies: bool) -> None:
        values = self.values[at]
        law = multiplied if multiplies else added
        self.low[at], self.centre[at], self.high[at] = law(values[np.isfinite(values)].astype(np.float64))


FIELDS = ("values", "taken", "centre", "low", "high")


def added(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lower edge, centre and upper edge of values about a mean; NaN where there is none: of values that are not all
    positive no multiple says anything."""
    mean, deviation = float(values.mean()), float(values.std())
    if values.min() <= 0:
        return np.nan, np.nan, np.nan
    low = mean - max(RECENT_FALL * deviation, LEAST_FALL * mean)
    return (low if low > 0 else np.nan), mean, mean + max(RECENT_RISE * deviation, LEAST_RISE * mean)


def multiplied(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The same of values about a median, in the logarithm; they have no lower edge."""
    logs = np.log2(values[values > 0])
    if logs.size < RECENT_MINIMUM_POINTS:
        return np.nan, np.nan, np.nan
    lower, middle, upper, most = np.percentile(logs, (25, 50, 75, 100))
    deviation = SPREAD_DEVIATIONS * _TO_NORMAL * (upper - lower)
    rise = max(deviation, SPREAD_EXTREMES * (most - middle), np.log2(LEAST_TIMES))
    return np.nan, float(np.exp2(middle)), float(np.exp2(middle + rise))
