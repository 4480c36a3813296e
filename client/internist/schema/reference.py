"""What a reference run leaves behind for others: its trajectory, every judged metric by place and relative depth.

A trajectory is made of a small run that is well (a muP proxy) and holds whatever is needed to judge a wider, deeper one
by it: nothing of the run's own steps is read again. As a file it is this document as JSON.
"""

import math
from dataclasses import dataclass

TRAJECTORY_VERSION = 1
BINS_PER_OCTAVE = 4
"""Points of a curve for each doubling of the step."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one place in the model over the steps of a run, as log2 of its values."""

    metric: str
    place: str
    """Of a module or parameter in a block: its name below the block, numbers replaced by `*`; empty: the block itself.
    Elsewhere its whole name so."""
    depth: float | None
    """Of a block: how far through the model it is, 0 to 1; None outside of blocks."""
    bins: tuple[int, ...]
    """Numbers of the bins that have points, rising, see `bin_of`; what follows is aligned with it."""
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]
    """Smallest, median and largest value in the bin, of all its steps, heads and like-named modules."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A run as others are held to it."""

    version: int
    run: str
    name: str
    width: int
    """Features of the residual stream."""
    depth: int
    """Residual blocks; 0 where there are none."""
    head_width: float | None
    """Features of an attention head."""
    parametrization: str
    last_step: int
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class TrajectoryPiece:
    """A part of a trajectory on the wire: its JSON, compressed by zlib, cut into `of` pieces."""

    number: int
    of: int
    body: bytes


def bin_of(step: int) -> int:
    """Number of the bin that a step lies in: logarithmic, four an octave."""
    return math.floor(BINS_PER_OCTAVE * math.log2(step + 1))
