"""The governor: thins sampling so that the monitor's share of the run's time stays within what it was allowed, at every
moment. An account says what may be spent, and forecasts say by how much each class of sample is thinned."""

import logging
from collections.abc import Iterator
from dataclasses import replace

from internist.observe.costs import CostMeter, Costs
from internist.observe.sampling import MOST_POWER, MOST_TURNS, NOTHING, UNSTRETCHED, Due, Powers, due
from internist.observe.stopwatch import Spent
from internist.schema.grid import HEAVY_EVERY, MATRIX_ROTATION, spacing

log = logging.getLogger("internist")

START_S, START_STEPS = 3.0, 1_000
"""What the start may cost beyond its share: so many seconds, or the share of so many bare rounds, whichever is more."""
START_ROUNDS = 100
"""Rounds of a process that are its start: what is left of the allowance then lapses."""
KEPT_ROUNDS = 10
"""Rounds whose share stays then, so that sampling that needs no thinning goes on."""
FIRST_SHARE = 2 / 3
"""Share of the allowance that the first sample takes at most, so that what is loaded and compiled for it, once, leaves
something to the others."""
LEARNING_ROUNDS = 3
"""First rounds of a process, whose lengths say nothing: libraries load, compilers run."""
AHEAD = 0.5
"""Share of the start's allowance that is left which samples may use up until the run is twice as old."""
SHORTEST, LONGEST = 8, 1_000
"""Steps that a forecast covers, at the least and at the most; between, as many as were made."""
RELIEF = 0.7
"""Sampling grows denser again when that would take this share of what is allowed."""
LATELY = 1 - 1 / 1_000
"""Weight that a round loses in the measured share with every round that follows."""


class Account:
    """What the monitor may spend: a share of every round's time and, while a run starts, its allowance."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.allowance = START_S
        self._debt = 0.0

    @property
    def left(self) -> float:
        """Seconds that may be spent now. What is saved never exceeds the allowance."""
        return self.allowance - self._debt

    def book(self, spent_s: float, wall_s: float) -> None:
        """A round is over."""
        self._debt = max(0.0, self._debt + spent_s - self.limit * wall_s)

    def end_start(self, kept_s: float) -> None:
        """From here on only a share of the time is spent, as it passes, and what is kept of the allowance at most."""
        self._debt = max(self._debt, self.allowance - kept_s)

    def affords(self, cost_s: float) -> bool:
        """Whether a sample may be taken. What costs more than all that may be saved waits until that is there."""
        return self.left >= min(cost_s, self.allowance)


class Governor:
    """Decides what each step measures.

    Args:
        limit: share of the run's time that the monitor may take; 0: no limit.
        every: steps between light samples, as asked for.
        rotates: whether modules may be measured in turns: where there are so many that it makes a difference.
    """

    def __init__(self, limit: float, every: int, *, rotates: bool = False) -> None:
        self.limit, self.rotates = limit, rotates
        self.powers = UNSTRETCHED
        """What this process's own costs ask for."""
        self.told = UNSTRETCHED
        """What the slowest rank's costs ask for."""
        self.meter = CostMeter()
        self._every = every
        self._account = Account(limit)
        self._rounds = 0
        self._samples = 0
        self._spent = self._wall = 0.0

    @property
    def in_force(self) -> Powers:
        """By how much sampling is thinned."""
        return self.powers.coarser(self.told)

    @property
    def share(self) -> float:
        """Share of the last thousand rounds' time that the monitor took."""
        return self._spent / self._wall if self._wall > 0 else 0.0

    def asked_share(self) -> float:
        """Share of the run's time that the regular cadence takes without any thinning; 0 while that is not known."""
        costs = self.meter.costs()
        if costs.plain <= 0:
            return 0.0
        heavily = costs.heavy + costs.quarter
        return (costs.idle + (costs.light[0] + heavily / HEAVY_EVERY) / self._every) / costs.plain

    def observe(self, sample: Due, host: Spent, wall_s: float, behind_s: float = 0.0) -> None:
        """Take one round.

        Args:
            sample: what it measured.
            host: host time spent in the monitor.
            wall_s: how long it took in all.
            behind_s: time that the monitor's other threads took since the last one.
        """
        self._rounds += 1
        spent = self.meter.spent(sample, host, wall_s if self._rounds > LEARNING_ROUNDS else None, behind_s)
        if sample.light and not self._samples:
            spent = min(spent, FIRST_SHARE * self._account.allowance)
        if sample.light:
            self._samples += 1
            self._account.allowance = max(START_S, self.limit * START_STEPS * self.meter.plain)
        self._account.book(spent, wall_s)
        self._spent = self._spent * LATELY + spent
        self._wall = self._wall * LATELY + wall_s
        if self._rounds == START_ROUNDS:
            self._account.end_start(self.limit * KEPT_ROUNDS * self.meter.plain)

    def observe_device(self, sample: Due, host: Spent, device: Spent) -> None:
        """Take what the monitor's work in a round took on the device, which is known later than its host time."""
        self.meter.device(sample, device)
        more = device.beyond(host)
        self._account.book(more, 0.0)
        self._spent += more

    def observe_length(self, sample: Due, length_s: float, known: Spent) -> None:
        """Take how long a round was by the clock of what limits it: the device's, where there is one; and how much of
        that the monitor's known work took."""
        if self._rounds > LEARNING_ROUNDS:
            self.meter.length(sample, length_s, known)

    def decide(self, step: int, *, dense_until: int = -1) -> Due:
        """What a step measures: what its grid says, as far as the account affords it."""
        sample = due(step, self._every, dense_until=dense_until)
        if not sample.light:
            return NOTHING
        if self.limit > 0:
            self._choose(step)
        sample = due(step, self._every, powers=self.in_force, dense_until=dense_until)
        if self.limit <= 0:
            return sample
        return next((less for less in _less_and_less(sample) if self._account.affords(self.meter.of(less))), NOTHING)

    def _choose(self, step: int) -> None:
        """Thin while the forecast exceeds what is allowed; else take one step back, if that is far enough from it."""
        costs = self.meter.costs()
        if costs.plain <= 0:
            return
        ahead = min(max(step, SHORTEST), LONGEST)
        extra = AHEAD * max(0.0, self._account.left) if self._rounds < START_ROUNDS else 0.0
        allowed = self.limit * costs.plain - costs.idle + extra / ahead
        powers = self.powers
        while forecast(step, self._every, powers, costs) > allowed:
            thinner = self._thinner(step, powers, costs)
            if forecast(step, self._every, thinner, costs) >= forecast(step, self._every, powers, costs):
                break
            powers = thinner
        if powers == self.powers:
            powers = min(_denser(powers), key=lambda each: forecast(step, self._every, each, costs), default=powers)
            if forecast(step, self._every, powers, costs) > RELIEF * allowed:
                return
        self._set(powers)

    def _thinner(self, step: int, powers: Powers, costs: Costs) -> Powers:
        """The same with that class thinned that saves most: modules take turns before time is stretched."""
        turns = self.rotates and powers.turns < MOST_TURNS
        light = powers._replace(turns=powers.turns + 1) if turns else powers._replace(light=powers.light + 1)
        classes = light, powers._replace(heavy=powers.heavy + 1), powers._replace(matrices=powers.matrices + 1)
        return min(
            (each for each in classes if max(each) <= MOST_POWER),
            key=lambda each: forecast(step, self._every, each, costs),
            default=powers,
        )

    def _set(self, powers: Powers) -> None:
        if powers == self.powers:
            return
        self.powers = powers
        if powers != UNSTRETCHED:
            log.info(
                "internist: samples every %d steps would take %.1f %% of the time: %s keeps within max_overhead=%g "
                "(0: no limit)",
                self._every, 100 * self.asked_share(), in_words(self._every, powers), self.limit,
            )  # fmt: skip


def forecast(step: int, every: int, powers: Powers, costs: Costs) -> float:
    """Seconds a step that samples take at this step's spacing. A heavy sample off the light grid is a light one too."""
    heavily = every * HEAVY_EVERY
    heavy = 1 / spacing(step, heavily, power=powers.heavy)
    whole = spacing(step, heavily * MATRIX_ROTATION)
    is_regular = whole == heavily * MATRIX_ROTATION
    matrices = (MATRIX_ROTATION if is_regular else 1) / (whole << powers.matrices)
    light = max(1 / spacing(step, every, power=powers.light), heavy, matrices)
    return (
        light * costs.light[powers.turns]
        + heavy * costs.heavy
        + matrices * (costs.quarter if is_regular else costs.matrices)
    )


def cadence_in_force(step: int, every: int, powers: Powers) -> tuple[int, int, int]:
    """Steps between two light samples at this step, two model-heavy ones, and two measurements of one matrix."""
    heavily = every * HEAVY_EVERY
    return (
        spacing(step, every, power=powers.light),
        spacing(step, heavily, power=powers.heavy),
        spacing(step, heavily * MATRIX_ROTATION, power=powers.matrices),
    )


def in_words(every: int, powers: Powers) -> str:
    """What these powers mean once the run is old."""
    heavily = every * HEAVY_EVERY
    light, heavy, matrices = (
        every << powers.light,
        heavily << powers.heavy,
        heavily * MATRIX_ROTATION << powers.matrices,
    )
    turns = f", small modules in {1 << powers.turns} turns" if powers.turns else ""
    return f"sampled every {light} steps{turns}, heavily every {heavy}, each matrix every {matrices}"


def _denser(powers: Powers) -> Iterator[Powers]:
    """The same with one class less thinned: time first, then turns."""
    for field in ("matrices", "heavy", "light"):
        if power := getattr(powers, field):
            yield powers._replace(**{field: power - 1})
    if powers.turns and not powers.light:
        yield powers._replace(turns=powers.turns - 1)


def _less_and_less(sample: Due) -> Iterator[Due]:
    """A sample, and what is left of it without its dearer parts."""
    yield sample
    if sample.matrices is not None:
        yield replace(sample, matrices=None)
    if sample.heavy:
        yield replace(sample, heavy=False, matrices=None)
