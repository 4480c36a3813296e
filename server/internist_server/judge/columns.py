"""Columns of series: where the one that tells another thing of the same subject is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from internist_server.judge.series import JudgedSeries

Indices = NDArray[np.int64]

MISSING = -1
"""In place of a column: there is none."""


class Columns(dict[tuple[str, int | None, str], int]):
    """Columns of one metric by subject, index and bound."""

    @classmethod
    def of(cls, series: Sequence[JudgedSeries], metric: str) -> "Columns":
        """Those of a metric."""
        return cls({(s.subject, s.index, s.bound): c for c, s in enumerate(series) if s.metric == metric})

    def like(self, one: JudgedSeries) -> int:
        """Column for the same subject: of the same bound if there is one, else of a better known one."""
        for bound in (one.bound, "exact", "sampled", "lower"):
            column = self.get((one.subject, one.index, bound))
            if column is not None:
                return column
        return MISSING
