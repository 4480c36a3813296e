"""Which step measures what: a pure function of the step number, so that the grids of all ranks are nested; and the
governor, which stretches it so that the monitor keeps within its share of the run's time."""

import logging
import math
import statistics
from collections import deque
from dataclasses import dataclass

from internist.schema.metrics import METRICS, RATIOS_OVER

log = logging.getLogger("internist")

DENSE_STEPS = frozenset((0, 1, 2, 5, 10, 20, 50))
"""Start-up steps that measure everything."""
HEAVY_EVERY = 10
"""Heavy classes run every so many light samples."""
MATRIX_ROTATION = 4
"""A matrix-heavy step measures every fourth matrix, in rotation."""
GOVERNED_FROM = 100
"""Rounds of this process before which the governor never thins: the start is sampled as the grid says."""
MOST_POWER = 12
LEARNING_ROUNDS = 3
"""First rounds of a process say nothing about cost: libraries load, compilers run."""
REMEMBERED_PLAIN, REMEMBERED_SAMPLED = 63, 7
"""Rounds whose times the governor keeps: without a sample, and of each class of sample."""
ENOUGH = 5
"""Sampled rounds from which on their length counts: a pause (an evaluation) may lie in some of them."""
RELIEF = 0.7
"""Denser sampling begins again when it would take this share of what is allowed."""


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

    def wants(self, *metrics: str) -> bool:
        """Whether any of these metrics is measured: wanted itself, or what one that is wanted is divided by."""
        return self.wanted is None or any(not self.wanted.isdisjoint((m, *RATIOS_OVER.get(m, ()))) for m in metrics)

    def cadence(self, metric: str) -> int:
        """Steps between two points of a metric, as the catalogue classes it."""
        known = METRICS.get(metric)
        if known is None or known.cadence == "logged":
            return 1
        return (
            self.every
            * {"light": 1, "model_heavy": HEAVY_EVERY, "matrix_heavy": HEAVY_EVERY * MATRIX_ROTATION}[known.cadence]
        )


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
    """Chooses how far sampling is stretched, from what samples cost and how long a round takes without one.

    The cost of a sample is the host time spent in the monitor or, where a device works behind the host's back, by how
    much sampled rounds are longer than others, whichever is more; medians, so that an evaluation between two steps
    counts for nothing.
    """

    def __init__(self, limit: float, every: int) -> None:
        self.limit = limit
        self.power = 0
        """Steps between samples are multiplied by two to this power."""
        self._every = every
        self._rounds = 0
        self._plain: deque[float] = deque(maxlen=REMEMBERED_PLAIN)
        self._idle: deque[float] = deque(maxlen=REMEMBERED_PLAIN)
        self._sampled: dict[bool, deque[tuple[float, float]]] = {
            heavy: deque(maxlen=REMEMBERED_SAMPLED) for heavy in (False, True)
        }

    def observe(self, sample: Due, monitor_s: float, wall_s: float) -> None:
        """Take one round: what it measured, the host time spent in the monitor, and how long it took in all."""
        self._rounds += 1
        if self._rounds <= LEARNING_ROUNDS:
            return
        if sample.light:
            self._sampled[sample.heavy].append((monitor_s, wall_s))
        else:
            self._plain.append(wall_s)
            self._idle.append(monitor_s)
        if self.limit > 0 and self._rounds >= GOVERNED_FROM and (sample.light or not self.power):
            self._choose()

    def share(self) -> float:
        """Share of the run's time that samples at the unstretched cadence take; 0 while it is not known."""
        plain = statistics.median(self._plain) if self._plain else self._plain_guess()
        light, heavy = self._cost(False, plain), self._cost(True, plain)
        if plain <= 0 or light is None:
            return 0.0
        extra = max(0.0, heavy - light) if heavy is not None else 0.0
        return (light + extra / HEAVY_EVERY) / (self._every * plain)

    def _cost(self, heavy: bool, plain: float) -> float | None:
        rounds = self._sampled[heavy]
        if not rounds:
            return None
        host = statistics.median(monitor for monitor, _ in rounds)
        longer = statistics.median_low(wall for _, wall in rounds) - plain
        return max(host, longer) if len(rounds) >= ENOUGH and self._plain else host

    def _plain_guess(self) -> float:
        """How long a round would take without a sample, where every one has one."""
        rounds = [*self._sampled[False], *self._sampled[True]]
        return statistics.median(max(0.0, wall - monitor) for monitor, wall in rounds) if rounds else 0.0

    def _choose(self) -> None:
        share = self.share()
        if share <= 0:
            return
        power = max(0, min(MOST_POWER, math.ceil(math.log2(share / self.limit))))
        if power < self.power and share / 2**power > RELIEF * self.limit:
            power += 1
        if power != self.power:
            self.power = power
            if power:
                log.info(
                    "internist: samples every %d steps would take %.1f %% of the time: sampling every %d steps keeps "
                    "within max_overhead=%g (0: no limit)",
                    self._every, 100 * share, self._every << power, self.limit,
                )  # fmt: skip
