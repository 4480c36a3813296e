"""What one step was judged to be, as it is stored."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist_server.judge.checks import Flags, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.transitions import Transition


@dataclass(frozen=True, slots=True)
class ChangedBands:
    """Bands from a step on."""

    column: Indices
    """Places in `Judge.order`."""
    scheduled: Flags
    """Whether its edges are of values over the schedule's divisor."""
    edges: Logs
    """(columns, 4): lower and upper warning edge, lower and upper critical edge; NaN: none."""


@dataclass(frozen=True, slots=True)
class StepJudgement:
    """What one step was judged to be. The arrays are aligned with `Judge.order` as it was then."""

    step: int
    schedule: float
    """Learning rate over the largest so far, run-wide; NaN if unknown."""
    divisor: float
    """What scheduled values were divided by."""
    ratios: NDArray[np.float16]
    """log2 of value over the band's centre. NaN: not judged here; inf: not finite; -inf: zero."""
    basis: NDArray[np.uint8]
    """0 none, 1 target, 2 reference, 3 baseline, 4 sanity."""
    bands: ChangedBands
    """The bands that are others than at each series' judged point before."""
    transitions: list[Transition]
