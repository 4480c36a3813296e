"""What rounds cost: how long a bare one is, and what each class of sample adds to it."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from internist.observe.sampling import MATRIX_ROTATION, MOST_TURNS, Due
from internist.observe.stopwatch import Part, Spent

REMEMBERED_PLAIN, REMEMBERED_SAMPLED = 63, 7
"""Rounds that are remembered: without a sample, and of each kind of sample."""
ENOUGH = 5
"""Sampled rounds from which on their lengths count: a pause (an evaluation) may lie in some of them."""
OF_HALF_THE_MODULES = 0.6
"""What a light sample is taken to cost when half of the modules wait for their turn, until some were measured."""

GUESSED_ROUNDS = 3
"""Bare rounds that a part is taken to cost at the most before a second sample had it: two replays are about one."""

_TURNS = [1 << power for power in range(MOST_TURNS + 1)]
K = TypeVar("K")
Kind = tuple[Part, int]
"""A part of a sample's work, and how much of it: in how many turns modules are measured, how many quarters of the
matrices."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: a bare round, and what is added to it."""

    plain: float
    idle: float
    """By the monitor, in a round without a sample."""
    light: tuple[float, ...]
    """By a light sample, for the modules in one, two, four, ... turns,"""
    light_at_most: tuple[float, ...]
    """and if turns that were not measured yet saved nothing."""
    heavy: float
    """By what a model-heavy sample measures beyond a light one,"""
    matrices: float
    """and by all matrices,"""
    quarter: float
    """and by a quarter of them."""


class CostMeter:
    """Learns costs from rounds.

    The cost of a part of a sample is the time that the monitor's work for it took on the host, or on the device,
    whichever is more. By how much sampled rounds are longer than that explains counts too, and so does what is done
    for a sample in other threads. Medians, so that an evaluation between two steps counts for nothing.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=REMEMBERED_PLAIN)
        self._idle: deque[float] = deque(maxlen=REMEMBERED_PLAIN)
        self._bare: deque[float] = deque(maxlen=REMEMBERED_SAMPLED)
        """Lengths of sampled rounds without the host time in the monitor: what else there is at a start."""
        self._host: _Rounds[Kind] = _Rounds()
        self._device: _Rounds[Kind] = _Rounds()
        self._unexplained: _Rounds[tuple[bool, int]] = _Rounds()
        """By what samples measure of it, the latest last: lengths of rounds without the monitor's known work."""
        self._first: dict[Kind, float] = {}
        """What the first sample took."""
        self._behind = 0.0
        """Seconds that were taken in other threads since the last sample,"""
        self._threads: deque[float] = deque(maxlen=REMEMBERED_SAMPLED)
        """and between one sample and the next."""
        self._costs: Costs | None = None
        self._plain_rounds = self._samples = 0

    def spent(self, sample: Due, host: Spent, wall_s: float | None, behind_s: float = 0.0) -> float:
        """Take one round; its cost.

        Args:
            sample: what it measured.
            host: host time in the monitor.
            wall_s: how long the round took in all; None: that says nothing of rounds to come.
            behind_s: time that the monitor's other threads took since the last round.
        """
        self._behind += behind_s
        if not sample.light:
            self._idle.append(host.total)
            return host.total + behind_s
        if wall_s is not None:
            self._bare.append(max(0.0, wall_s - host.total))
        taken = {kind: host[kind[0]] for kind in kinds_of(sample)}
        if self._samples:
            self._threads.append(self._behind)
            for kind, seconds in taken.items():
                self._host.add(kind, seconds)
        else:  # much is loaded for it
            self._first = taken
        self._samples += 1
        self._behind = 0.0
        self._costs = None
        return host.total + self._surplus(heavy=sample.heavy) + behind_s

    def device(self, sample: Due, device: Spent) -> None:
        """What the work of a sample took on a device, told as late as it is known."""
        for kind in kinds_of(sample):
            self._device.add(kind, device[kind[0]])
        self._costs = None

    def length(self, sample: Due, length_s: float, known: Spent) -> None:
        """How long a round was by the clock of what limits it, told as late as it is known.

        Args:
            sample: what it measured.
            length_s: seconds.
            known: what the monitor's work took of them.
        """
        if sample.light:
            self._unexplained.add((sample.heavy, quarters(sample)), length_s - known.total)
            self._costs = None
        else:
            self._plain.append(length_s)
            self._plain_rounds += 1
            if self._plain_rounds % REMEMBERED_PLAIN == 0:
                self._costs = None

    def of(self, sample: Due) -> float:
        """What a sample like this one costs at the most, as far as it is known."""
        costs = self.costs()
        matrices = {0: 0.0, 1: costs.quarter, MATRIX_ROTATION: costs.matrices}[quarters(sample)]
        guessed = sum(self._guessed(kind) for kind in kinds_of(sample))
        return costs.light_at_most[sample.turns.bit_length() - 1] + sample.heavy * costs.heavy + matrices + guessed

    def costs(self) -> Costs:
        """What is known, as of the last sample."""
        if self._costs is None:
            quarter, whole = (self._known((Part.MATRICES, n)) for n in (1, MATRIX_ROTATION))
            if whole is None:
                whole = MATRIX_ROTATION * (quarter or 0.0)
            if quarter is None:
                quarter = whole / MATRIX_ROTATION
            of_light, heavily, of_quarter, of_whole = self._hidden_parts()
            beside = of_light + (statistics.median(self._threads) if self._threads else 0.0)
            lights = [self._known((Part.LIGHT, turns)) for turns in _TURNS]
            self._costs = Costs(
                plain=self.plain,
                idle=statistics.median(self._idle) if self._idle else 0.0,
                light=tuple(light + beside for light in _over_turns(lights, OF_HALF_THE_MODULES)),
                light_at_most=tuple(light + beside for light in _over_turns(lights, 1.0)),
                heavy=(self._known((Part.HEAVY, 1)) or 0.0) + heavily,
                matrices=whole + of_whole,
                quarter=quarter + of_quarter,
            )
        return self._costs

    @property
    def plain(self) -> float:
        """Length of a round without a sample; a guess while every one had one."""
        known = self._plain if self._plain else self._bare
        return statistics.median(known) if known else 0.0

    def _known(self, kind: Kind) -> float | None:
        host = self._host.median(kind)
        return None if host is None else max(host, self._device.median(kind) or 0.0)

    def _guessed(self, kind: Kind) -> float:
        """What a part may cost that only the first sample had; 0 where more is known."""
        known = any(self._host.median((kind[0], amount)) is not None for amount in (*_TURNS, MATRIX_ROTATION))
        return 0.0 if known else min(self._first.get(kind, 0.0), GUESSED_ROUNDS * self.plain)

    def _hidden(self, heavy: bool, quarters: int) -> float | None:
        """By how much rounds of a kind are longer than bare ones and the known work; None while that is not known."""
        length = self._unexplained.median((heavy, quarters), least=ENOUGH)
        return None if length is None or not self._plain else max(0.0, length - self.plain)

    def _hidden_parts(self) -> tuple[float, float, float, float]:
        """What nobody has timed of a light sample, of what a model-heavy one adds, and of a quarter and of all of the
        matrices: by how much rounds of kinds that differ in that part alone differ."""
        light = self._hidden(False, 0) or 0.0
        matrices = {n: max(0.0, (self._hidden(False, n) or light) - light) for n in (0, 1, MATRIX_ROTATION)}
        heavy = ((self._hidden(*kind), matrices[kind[1]]) for kind in self._unexplained.kinds if kind[0])
        added = next((max(0.0, found - light - beside) for found, beside in heavy if found is not None), 0.0)
        return light, added, matrices[1] or matrices[MATRIX_ROTATION] / MATRIX_ROTATION, matrices[MATRIX_ROTATION]

    def _surplus(self, *, heavy: bool) -> float:
        """By how much rounds with such samples are longer than bare ones and the known work; 0 while that is not
        known."""
        latest = (self._hidden(*kind) for kind in self._unexplained.kinds if kind[0] == heavy)
        return next((found for found in latest if found is not None), 0.0)


class _Rounds(Generic[K]):
    """The last rounds of each kind."""

    def __init__(self) -> None:
        self._seconds: dict[K, deque[float]] = {}

    @property
    def kinds(self) -> list[K]:
        """The latest first."""
        return list(reversed(self._seconds))

    def add(self, kind: K, seconds: float) -> None:
        rounds = self._seconds.pop(kind, None) or deque(maxlen=REMEMBERED_SAMPLED)
        rounds.append(seconds)
        self._seconds[kind] = rounds

    def median(self, kind: K, *, least: int = 1) -> float | None:
        """None of fewer than so many."""
        rounds = self._seconds.get(kind, ())
        return statistics.median_low(rounds) if len(rounds) >= least else None


def quarters(sample: Due) -> int:
    """How many quarters of the matrices a sample measures."""
    return 0 if sample.matrices is None else MATRIX_ROTATION if sample.matrices < 0 else 1


def kinds_of(sample: Due) -> list[Kind]:
    """What a sample is made of."""
    kinds = [(Part.LIGHT, sample.turns)]
    if sample.heavy:
        kinds.append((Part.HEAVY, 1))
    if sample.matrices is not None:
        kinds.append((Part.MATRICES, quarters(sample)))
    return kinds


def _over_turns(known: Sequence[float | None], of_half: float) -> list[float]:
    """A cost for every number of turns, from those that were measured.

    Args:
        known: for one, two, four, ... turns.
        of_half: what is left of it with twice the turns, where that was not measured.
    """
    measured = [(power, cost) for power, cost in enumerate(known) if cost is not None]
    if not measured:
        return [0.0] * len(known)

    def at(power: int) -> float:
        nearest, cost = min(measured, key=lambda each: abs(each[0] - power))
        more = power - nearest
        return cost * (math.pow(of_half, more) if more > 0 else math.pow(OF_HALF_THE_MODULES, more))

    return [at(power) for power in range(len(known))]
