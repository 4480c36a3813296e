"""How long the training's rounds take on the host, and how much of that its thread waits: for other ranks, for data."""

import time
from collections.abc import Iterator


class RoundTimes:
    """Sums up the rounds between two samples. A thread that waits takes no time of a processor."""

    def __init__(self) -> None:
        self._cpu_s = time.thread_time()
        self._bare = self._last = (0, 0.0, 0.0)
        """Rounds, seconds and seconds waited: of rounds without a sample since the last one, and of the last round."""

    def round_ended(self, length_s: float, own_s: float, *, is_sampled: bool, is_whole: bool) -> None:
        """A round is over.

        Args:
            length_s: by the clock.
            own_s: of it the monitor's own.
            is_sampled: whether it was sampled: it is then counted where there is no other.
            is_whole: whether it held nothing but training.
        """
        before, self._cpu_s = self._cpu_s, time.thread_time()
        if not is_whole:
            return
        waited_s = max(0.0, length_s - (self._cpu_s - before))
        bare_s = max(0.0, length_s - own_s)
        self._last = 1, bare_s, min(waited_s, bare_s)
        if not is_sampled:
            rounds, length, waited = self._bare
            self._bare = rounds + 1, length + length_s, waited + waited_s

    def take(self, *, on_device: bool) -> Iterator[tuple[str, float]]:
        """What is told of the rounds since this was last asked, by metric.

        Args:
            on_device: whether the model is on a GPU: its host may spin while it waits, or be ahead of it.
        """
        rounds, length_s, waited_s = self._bare if self._bare[0] else self._last
        self._bare = self._last = (0, 0.0, 0.0)
        if rounds:
            yield "monitor.step_ms", length_s / rounds * 1e3
            if not on_device:
                yield "monitor.waited_ms", waited_s / rounds * 1e3
