"""The pace of a run's sampling: what each step measures, what that costs, and what the server and other ranks wish."""

from collections.abc import Callable, Iterable, Iterator

from internist.observe.governor import Governor, cadence_in_force, in_words
from internist.observe.round_times import RoundTimes
from internist.observe.sampling import UNSTRETCHED, Due, Powers, Sampling
from internist.observe.stopwatch import Stopwatch
from internist.schema.wire import Directive

MANY_MODULES = 64
"""Modules from which on they are measured in turns before samples lie further apart."""
TELLING_ROUNDS = 1_000
"""Rounds after which the measured share is told anew, if nothing else has changed."""


class Pacing:
    """Wires clock and governor.

    Args:
        sampling: what is measured, and how often.
        modules: how many modules there are.
    """

    def __init__(self, sampling: Sampling, *, modules: int) -> None:
        self._sampling = sampling
        self._governor = Governor(sampling.max_overhead, sampling.every, rotates=modules >= MANY_MODULES)
        self._dense_until = -1
        self.on_device = False
        """Whether the model is on a GPU, whose clock times the rounds."""
        self._rounds = self._told_round = 0
        self._told_powers = UNSTRETCHED
        self._told = ""
        self.work = Stopwatch()
        """Times the monitor's work."""
        self.behind_s: Callable[[], float] = float
        """Seconds that the monitor's other threads have worked so far."""
        self._behind_s = 0.0
        self._times = RoundTimes()

    @property
    def powers(self) -> Powers:
        """By how much this rank's own costs ask to thin sampling."""
        return self._governor.powers

    def take_directives(self, directives: Iterable[Directive]) -> None:
        """Sample densely for a while, and as rarely as the slowest rank, as the server wishes."""
        for directive in directives:
            self._dense_until = max(self._dense_until, directive.until_step)
            if directive.powers is not None:
                self._governor.told = Powers.of(directive.powers)

    def round_ended(self, sample: Due) -> None:
        """A round is over: what it measured."""
        host, length, is_whole = self.work.end_round(sample)
        self._times.round_ended(length, host.total, is_sampled=sample.light, is_whole=is_whole)
        before, self._behind_s = self._behind_s, self.behind_s()
        self._rounds += 1
        self._governor.observe(sample, host, length, self._behind_s - before)
        if not self.on_device and is_whole:
            self._governor.observe_length(sample, length, host)
        for one in self.work.timed():
            self._governor.observe_device(one.sample, one.host, one.device)
            if one.length_s is not None:
                self._governor.observe_length(one.sample, one.length_s, one.device)

    def decide(self, step: int) -> Due:
        """What a step measures."""
        return self._governor.decide(step, dense_until=self._dense_until)

    def begin_round(self, sample: Due) -> None:
        """The round that measures this begins."""
        self.work.begin_round(sample, on_device=self.on_device)

    def values(self, step: int) -> Iterator[tuple[str, float]]:
        """The cadence in force at a step, what it costs and what the one that was asked for would cost: by metric."""
        powers = self._governor.in_force
        light, heavy, matrices = cadence_in_force(step, self._sampling.every, powers)
        yield "monitor.share", self._governor.share
        yield "monitor.asked_share", self._governor.asked_share()
        yield "monitor.light_every", light
        yield "monitor.model_heavy_every", heavy
        yield "monitor.matrix_heavy_every", matrices
        yield "monitor.turns", 1 << powers.turns
        yield from self._times.take(on_device=self.on_device)

    def in_words(self) -> str:
        """How often the run is sampled, why, and what it costs; it stays the same until there is something to tell."""
        powers = self._governor.in_force
        if powers != self._told_powers or self._rounds - self._told_round >= TELLING_ROUNDS or not self._told:
            self._told_powers, self._told_round = powers, self._rounds
            self._told = self._words(powers)
        return self._told

    def _words(self, powers: Powers) -> str:
        governor = self._governor
        said = f"{in_words(self._sampling.every, powers)}: measured share {governor.share:.1%} of the time"
        if powers == UNSTRETCHED:
            return said
        if governor.powers != powers:
            return f"{said}; as rarely as the slowest rank"
        return f"{said}; as asked for, it would take {governor.asked_share():.1%}, and {governor.limit:.1%} is allowed"
