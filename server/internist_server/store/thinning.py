"""Fewer points than there are, without losing a one-step spike; pure numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internist_server.store.merge import Floats, Ids


@dataclass(frozen=True, slots=True)
class Thinned:
    """One entry per bucket: its last point, its lowest and highest finite value, and how many were not finite."""

    picks: NDArray[np.int64]
    """Places of the last points in what was thinned."""
    low: Floats
    high: Floats
    nonfinite: NDArray[np.int64]
    is_thinned: bool


def bucket_starts(steps: Ids, pixels: int) -> NDArray[np.int64]:
    """Where each of at most `pixels` buckets of equal width in steps begins; every point its own where they fit."""
    if len(steps) <= pixels:
        return np.arange(len(steps))
    first, last = int(steps[0]), int(steps[-1])
    buckets = (steps - first) * pixels // (last - first + 1)
    return np.flatnonzero(np.diff(buckets, prepend=-1))


@dataclass(frozen=True, slots=True)
class Extent:
    """What points that stand for several say of those: their lowest and highest, and how many are not finite."""

    low: Floats
    high: Floats
    nonfinite: NDArray[np.int64]

    @classmethod
    def of(cls, values: Floats) -> "Extent":
        """Points that stand for themselves."""
        finite = np.isfinite(values)
        alone = np.where(finite, values, np.float32(np.nan))
        return cls(alone, alone, (~finite).astype(np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Extent"]) -> "Extent":
        """Those of one part after the other."""
        low, high = np.concatenate([one.low for one in parts]), np.concatenate([one.high for one in parts])
        return cls(low, high, np.concatenate([one.nonfinite for one in parts]))

    def at(self, rows: Any) -> "Extent":
        """Those of some points, or columns."""
        return Extent(self.low[rows], self.high[rows], self.nonfinite[rows])


def thin(steps: Ids, values: Floats, pixels: int, extent: Extent | None = None) -> Thinned:
    """Thin one series, whose steps rise, to at most `pixels` points. NaN where a bucket has no finite value.

    Args:
        extent: of points that stand for several; None: all stand for themselves.
    """
    starts = bucket_starts(steps, pixels)
    if not len(starts):
        empty = np.empty(0, np.float32)
        return Thinned(starts, empty, empty, starts, False)
    extent = extent or Extent.of(values)
    low = np.minimum.reduceat(np.where(np.isnan(extent.low), np.float32(np.inf), extent.low), starts)
    high = np.maximum.reduceat(np.where(np.isnan(extent.high), np.float32(-np.inf), extent.high), starts)
    nonfinite = np.add.reduceat(extent.nonfinite, starts)
    low[np.isinf(low)] = np.nan
    high[np.isinf(high)] = np.nan
    picks = np.append(starts[1:], len(steps)) - 1
    return Thinned(picks, low, high, nonfinite, len(starts) < len(steps))


def strongest(magnitudes: Floats, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each bucket and column, the row whose magnitude is largest.

    Args:
        magnitudes: (steps, columns), without NaN.
        starts: where each bucket begins.

    Returns:
        (buckets, columns) row numbers.
    """
    ends = np.append(starts[1:], len(magnitudes))
    picks = [begin + magnitudes[begin:end].argmax(axis=0) for begin, end in zip(starts, ends, strict=True)]
    return np.array(picks, dtype=np.int64).reshape(len(starts), magnitudes.shape[1])
