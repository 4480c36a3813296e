"""Which step measures what: a pure function of the step number, so that the grids of all ranks are nested."""

from dataclasses import dataclass

DENSE_STEPS = frozenset((0, 1, 2, 5, 10, 20, 50))
"""Start-up steps that measure everything."""
HEAVY_EVERY = 10
"""Heavy classes run every so many light samples."""
MATRIX_ROTATION = 4
"""A matrix-heavy step measures every fourth matrix, in rotation."""
GOVERNOR_FROM_STEP = 1_000
"""Before this step the governor never thins."""
GOVERNOR_MAX_POWER = 3


@dataclass(frozen=True, slots=True)
class Due:
    """What one step measures."""

    light: bool = False
    heavy: bool = False
    """Model-heavy: probe replay, dependency, MaxLogit."""
    matrices: int | None = None
    """Which quarter of the matrices; -1: all; None: none."""

    def owns_matrix(self, turn: int) -> bool:
        """Whether the matrix of this turn is due. Turns are shifted by one every four, so that no quarter gets all
        the large ones."""
        quarter = (turn + turn // MATRIX_ROTATION) % MATRIX_ROTATION
        return self.matrices is not None and (self.matrices < 0 or quarter == self.matrices)


NOTHING = Due()


def due(step: int, every: int, *, power: int = 0, dense_until: int = -1) -> Due:
    """What step number `step` measures.

    Args:
        step: optimizer rounds completed before it, from 0.
        every: steps between light samples.
        power: the governor's: steps between samples are multiplied by 2**power.
        dense_until: a directive's: every step up to this one measures the light class.
    """
    if step in DENSE_STEPS:
        return Due(light=True, heavy=True, matrices=-1)
    stride = every << power
    if step % stride == 0:
        heavy = step % (stride * HEAVY_EVERY) == 0
        return Due(True, heavy, (step // (stride * HEAVY_EVERY)) % MATRIX_ROTATION if heavy else None)
    return Due(light=True) if step <= dense_until else NOTHING


class Governor:
    """Thins sampling when the monitor takes more than its share of the run's time."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.power = 0
        self._monitor_s = 0.0
        self._steps = 0
        self._wall_s = 0.0

    def observe(self, step: int, monitor_s: float, wall_s: float) -> int:
        """Take one step's host time in the monitor and its wall time; returns the power to use from now on."""
        self._monitor_s += monitor_s
        self._wall_s += wall_s
        self._steps += 1
        if self.limit <= 0 or step < GOVERNOR_FROM_STEP or self._steps < 500:
            return self.power
        share = self._monitor_s / self._wall_s if self._wall_s > 0 else 0.0
        if share > self.limit and self.power < GOVERNOR_MAX_POWER:
            self.power += 1
        elif share < self.limit / 4 and self.power > 0:
            self.power -= 1
        self._monitor_s = self._wall_s = 0.0
        self._steps = 0
        return self.power
