"""Thinning: how much further apart the points of series lie than was asked for, as the run itself tells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.grid import HEAVY_EVERY, MATRIX_ROTATION
from internist.schema.metrics import METRICS
from internist_server.judge.series import JudgedSeries

MISSING = -1
_TELLING = ("monitor.light_every", "monitor.model_heavy_every", "monitor.matrix_heavy_every", "monitor.turns")
_CLASS = {"light": 0, "model_heavy": 1, "matrix_heavy": 2}
_REGULAR = np.array([1, HEAVY_EVERY, HEAVY_EVERY * MATRIX_ROTATION], np.float64)
"""Steps between two points of each class over those between two light samples."""


@dataclass(frozen=True, slots=True)
class Thinning:
    """What is needed to know it, by column."""

    classes: NDArray[np.int64]
    cadence: NDArray[np.int64]
    telling: NDArray[np.int64]
    """Columns of the series that tell the distances in force; MISSING where a client does not tell."""

    @classmethod
    def of(cls, series: Sequence[JudgedSeries]) -> "Thinning":
        """That of these series."""
        metrics = [one.metric for one in series]
        known = [METRICS.get(metric) for metric in metrics]
        return cls(
            np.array([_CLASS.get(metric.cadence, 0) if metric else 0 for metric in known], np.int64),
            np.array([max(one.facts.cadence, 1) for one in series], np.int64),
            np.array([metrics.index(metric) if metric in metrics else MISSING for metric in _TELLING], np.int64),
        )

    def distances(self, last: NDArray[np.float32], *, every: int, stride: int) -> NDArray[np.float64]:
        """By column: steps between two points now.

        Args:
            last: the last value of every series.
            every: steps between two light samples, as asked for.
            stride: light samples that lie between two of the run's, for a client that does not tell.
        """
        told = np.where(self.telling == MISSING, np.nan, last[self.telling]) if last.size else np.full(4, np.nan)
        turns = np.fmax(told[3], 1.0)
        factors = told[:3].astype(np.float64) / (every * _REGULAR)
        factors[0] *= turns
        factors = np.maximum(np.where(np.isfinite(factors), factors, stride), 1.0)
        rare = (self.classes == 0) & (self.cadence >= every * HEAVY_EVERY)  # light metrics that come with heavy samples
        return np.asarray(self.cadence * np.where(rare, factors[:2].max(), factors[self.classes]), np.float64)
