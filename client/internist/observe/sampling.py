"""What a run is asked to measure, and which step measures what: a pure function of the step's number, so that the grids
of all ranks are nested."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from internist.schema.grid import HEAVY_EVERY as HEAVY_EVERY
from internist.schema.grid import MATRIX_ROTATION as MATRIX_ROTATION
from internist.schema.grid import is_on_grid, spacing
from internist.schema.metrics import METRICS, RATIOS_OVER, WORKED_OUT_OF

MOST_POWER = 12
MOST_TURNS = 3
"""Light samples measure an eighth of the modules at the least."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a run is asked to measure, and how often."""

    every: int = 10
    """Steps between light samples."""
    wanted: frozenset[str] | None = None
    """Names of catalogue metrics that are measured; None: all."""
    max_overhead: float = 0.01
    """Share of the run's time the monitor may take; 0: no limit."""
    replay: bool = True
    """Whether the model may be run again on a probe."""
    inline: bool = False
    """Whether a compiled model is measured inside a compiled graph of its own."""

    def wants(self, *metrics: str) -> bool:
        """Whether any of these metrics is measured: wanted itself, or what one that is wanted is divided by or worked
        out of."""
        return self.wanted is None or any(not self.wanted.isdisjoint(_serves(metric)) for metric in metrics)

    def cadence(self, metric: str) -> int:
        """Steps between two points of a metric, as the catalogue classes it."""
        known = METRICS.get(metric)
        if known is None or known.cadence == "logged":
            return 1
        return (
            self.every
            * {"light": 1, "model_heavy": HEAVY_EVERY, "matrix_heavy": HEAVY_EVERY * MATRIX_ROTATION}[known.cadence]
        )


def _serves(metric: str) -> tuple[str, ...]:
    """A metric, and those that need it."""
    return (metric, *RATIOS_OVER.get(metric, ()), *WORKED_OUT_OF.get(metric, ()))


class Powers(NamedTuple):
    """By how much sampling is thinned, in powers of two."""

    light: int = 0
    """Steps between light samples are stretched by two to this power."""
    heavy: int = 0
    matrices: int = 0
    turns: int = 0
    """Modules that are no blocks and no head have their turn in one of two to this power light samples."""

    @classmethod
    def of(cls, numbers: Iterable[int]) -> "Powers":
        """Powers as they came over the wire, from whatever version: what is missing is 0, what is more is left out."""
        known = [max(0, min(MOST_POWER, number)) for number in numbers][: len(cls._fields)]
        found = cls(*known)
        return found._replace(turns=min(found.turns, MOST_TURNS))

    def coarser(self, other: "Powers") -> "Powers":
        """The larger ones of two."""
        return Powers(*map(max, self, other))


@dataclass(frozen=True, slots=True)
class Due:
    """What one step measures."""

    light: bool = False
    heavy: bool = False
    """Model-heavy: probe replay, dependency, MaxLogit."""
    matrices: int | None = None
    """Which quarter of the matrices; -1: all; None: none."""
    turn: int = 0
    """Whose turn it is among the modules that are measured in rotation,"""
    turns: int = 1
    """and how many turns there are."""

    def owns_matrix(self, turn: int) -> bool:
        """Whether the matrix of this turn is due. Turns are shifted by one every four, so that no quarter gets all
        the large ones."""
        quarter = (turn + turn // MATRIX_ROTATION) % MATRIX_ROTATION
        return self.matrices is not None and (self.matrices < 0 or quarter == self.matrices)


NOTHING = Due()
UNSTRETCHED = Powers()


def due(step: int, every: int, *, powers: Powers = UNSTRETCHED, dense_until: int = -1) -> Due:
    """What step number `step` measures.

    Whatever is measured at larger powers is measured at smaller ones too, so that ranks that differ in them share the
    steps of the coarsest.

    Args:
        step: optimizer rounds completed before it, from 0.
        every: steps between light samples.
        powers: the governor's.
        dense_until: a directive's: every step up to this one measures the light class.
    """
    heavy = is_on_grid(step, every * HEAVY_EVERY, power=powers.heavy)
    matrices = _matrices(step, every, powers.matrices)
    light = is_on_grid(step, every, power=powers.light)
    if not (light or heavy or matrices is not None or step <= dense_until):
        return NOTHING
    if not powers.turns or heavy or (not light and matrices is None):
        return Due(True, heavy, matrices)
    turns = 1 << powers.turns
    return Due(True, heavy, matrices, step // spacing(step, every, power=powers.light) % turns, turns)


def _matrices(step: int, every: int, power: int) -> int | None:
    """Which quarter of the matrices this step measures: all while a matrix's samples are geometric, then one after the
    other; a power leaves out whole rotations, so that no quarter is left out for ever."""
    heavily = every * HEAVY_EVERY
    if spacing(step, heavily * MATRIX_ROTATION) < heavily * MATRIX_ROTATION:
        return -1 if is_on_grid(step, heavily * MATRIX_ROTATION, power=power) else None
    turn, rest = divmod(step, heavily)
    return turn % MATRIX_ROTATION if not rest and turn // MATRIX_ROTATION % (1 << power) == 0 else None
