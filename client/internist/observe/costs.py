"""What rounds cost: how long a bare one is, and what each class of sample adds to it."""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from internist.observe.sampling import MATRIX_ROTATION, MOST_TURNS, Due

REMEMBERED_PLAIN, REMEMBERED_SAMPLED = 63, 7
"""Rounds that are remembered: without a sample, and of each kind of sample."""
FEW = 2
"""Samples of a kind from which on they say something of those to come: the first one warms up."""
ENOUGH = 5
"""Sampled rounds from which on their lengths count: a pause (an evaluation) may lie in some of them."""
OF_HALF_THE_MODULES = 0.6
"""What a light sample is taken to cost when half of the modules wait for their turn, until some were measured."""

_TURNS = [1 << power for power in range(MOST_TURNS + 1)]
Kind = tuple[bool, int, int]
"""Of a sample: whether it is model-heavy, how many quarters of the matrices it measures, and the modules' turns."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: a bare round, and what is added to it. What is not known apart counts for the heaviest it came with."""

    plain: float
    idle: float
    """By the monitor, in a round without a sample."""
    light: tuple[float, ...]
    """By a light sample, for the modules in one, two, four, ... turns."""
    heavy: float
    """By what a model-heavy sample measures beyond a light one,"""
    matrices: float
    """and by all matrices,"""
    quarter: float
    """and by a quarter of them."""


class CostMeter:
    """Learns costs from rounds.

    The cost of a sample is the time that the monitor's work took on the host, or on the device, or by how much rounds
    with it are longer than bare ones, whichever is most. Medians, so that an evaluation between two steps
    counts for nothing.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=REMEMBERED_PLAIN)
        self._idle: deque[float] = deque(maxlen=REMEMBERED_PLAIN)
        self._bare: deque[float] = deque(maxlen=REMEMBERED_SAMPLED)
        """Lengths of sampled rounds without the host time in the monitor: what else there is at a start."""
        self._costs: Costs | None = None
        self._plain_rounds = self._samples = 0
        self._last: dict[Kind, int] = {}
        """Which sample was the last one of its kind."""
        self._host: dict[Kind, deque[float]] = {}
        self._device: dict[Kind, deque[float]] = {}
        self._lengths: dict[Kind, deque[float]] = {}

    def spent(self, sample: Due, host_s: float, wall_s: float | None) -> float:
        """Take one round: what it measured, the host time in the monitor, and how long it took in all, where that says
        something of rounds to come; its cost."""
        if not sample.light:
            self._idle.append(host_s)
            return host_s
        if wall_s is not None:
            self._bare.append(max(0.0, wall_s - host_s))
        kind = kind_of(sample)
        _remember(self._host, kind, host_s)
        self._costs = None
        self._samples += 1
        self._last[kind] = self._samples
        return max(host_s, self._longer(kind))

    def device(self, sample: Due, device_s: float) -> None:
        """What the work of a sample took on a device, told as late as it is known."""
        _remember(self._device, kind_of(sample), device_s)
        self._costs = None

    def length(self, sample: Due, length_s: float) -> None:
        """How long a round took by the clock of what limits it, told as late as it is known."""
        if sample.light:
            _remember(self._lengths, kind_of(sample), length_s)
            self._costs = None
        else:
            self._plain.append(length_s)
            self._plain_rounds += 1
            if self._plain_rounds % REMEMBERED_PLAIN == 0:
                self._costs = None

    def of(self, sample: Due) -> float:
        """What a sample like this one costs, as far as it is known."""
        kind = kind_of(sample)
        if kind in self._host:
            return self._median(kind)
        known = self._costs_of(1)
        heavy, quarters, turns = kind
        matrices = {0: 0.0, 1: known.quarter, MATRIX_ROTATION: known.matrices}[quarters]
        return known.light[turns.bit_length() - 1] + heavy * known.heavy + matrices

    def costs(self) -> Costs:
        """What is known of kinds that were sampled a few times; as of the last sample."""
        if self._costs is None:
            self._costs = self._costs_of(FEW)
        return self._costs

    def _costs_of(self, least: int) -> Costs:
        known = {kind: self._median(kind) for kind, rounds in self._host.items() if len(rounds) >= least}
        light = _over_turns([known.get((False, 0, turns)) for turns in _TURNS])
        quarter, whole = (
            self._added(known, [((heavy, n, t), (heavy, 0, t)) for heavy in (False, True) for t in _TURNS])
            for n in (1, MATRIX_ROTATION)
        )
        heavy = self._added(known, [((True, n, 1), (False, n, 1)) for n in (0, 1, MATRIX_ROTATION)])
        if heavy is None and (True, 0, 1) in known:
            heavy = max(0.0, known[True, 0, 1] - light[0])
        together = known.get((True, MATRIX_ROTATION, 1), known.get((True, 1, 1)))
        if together is not None and (heavy is None or (quarter is None and whole is None)):
            rest = max(0.0, together - light[0])
            of_matrices = whole if whole is not None else None if quarter is None else quarter * MATRIX_ROTATION
            if of_matrices is None:
                whole = max(0.0, rest - (heavy or 0.0))
            elif heavy is None:
                heavy = max(0.0, rest - of_matrices)
        if whole is None:
            whole = MATRIX_ROTATION * (quarter or 0.0)
        if quarter is None:
            quarter = whole / MATRIX_ROTATION
        idle = statistics.median(self._idle) if self._idle else 0.0
        return Costs(self.plain, idle, tuple(light), heavy or 0.0, whole, quarter)

    def _added(self, known: dict[Kind, float], pairs: Iterable[tuple[Kind, Kind]]) -> float | None:
        """By how much the first of a pair costs more than the second: of the pair that was sampled last."""
        found = [
            (min(self._last[one], self._last[other]), one, other)
            for one, other in pairs
            if {one, other} <= known.keys()
        ]
        if not found:
            return None
        _, one, other = max(found)
        return max(0.0, known[one] - known[other])

    @property
    def plain(self) -> float:
        """Length of a round without a sample; a guess while every one had one."""
        known = self._plain if self._plain else self._bare
        return statistics.median(known) if known else 0.0

    def _median(self, kind: Kind) -> float:
        device = self._device.get(kind)
        works = statistics.median_low(device) if device else 0.0
        return max(statistics.median_low(self._host[kind]), works, self._longer(kind))

    def _longer(self, kind: Kind) -> float:
        """By how much rounds with such a sample are longer than bare ones; 0 while that is not known."""
        lengths = self._lengths.get(kind, ())
        if len(lengths) < ENOUGH or not self._plain:
            return 0.0
        return statistics.median_low(lengths) - self.plain


def kind_of(sample: Due) -> Kind:
    """What a sample is made of."""
    quarters = 0 if sample.matrices is None else MATRIX_ROTATION if sample.matrices < 0 else 1
    return sample.heavy, quarters, sample.turns


def _remember(rounds: dict[Kind, deque[float]], kind: Kind, seconds: float) -> None:
    rounds.setdefault(kind, deque(maxlen=REMEMBERED_SAMPLED)).append(seconds)


def _over_turns(known: list[float | None]) -> list[float]:
    """A cost for every number of turns, from those that were measured."""
    measured = [(power, cost) for power, cost in enumerate(known) if cost is not None]
    if not measured:
        return [0.0] * len(known)

    def at(power: int) -> float:
        nearest, cost = min(measured, key=lambda each: abs(each[0] - power))
        return cost * math.pow(OF_HALF_THE_MODULES, power - nearest)

    return [at(power) for power in range(len(known))]
