"""How long the monitor's work takes, and the rounds around it: on the host and, where the model is on a GPU, on the
device. Device times are read when they have come; nothing waits for them."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from internist.observe.sampling import NOTHING, Due

WAITING = 64
"""Rounds whose device times are waited for at most; beyond, the oldest is forgotten."""


class Mark(Protocol):
    """A moment of a device's stream of work: `torch.cuda.Event`."""

    def record(self) -> Any:
        """Put it behind what the stream has to do so far."""

    def query(self) -> bool:
        """Whether the stream has come to it."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from it to a later one."""


@dataclass(slots=True)
class Timed:
    """A round as the device timed it."""

    sample: Due
    host_s: float
    """Host time spent in the monitor."""
    work_s: float
    """Device time from the begin to the end of each piece of the monitor's work."""
    length_s: float | None
    """Device time of the whole round; None where something else than training lies in it."""


@dataclass(slots=True)
class _Round:
    begin: Mark
    work: list[tuple[Mark, Mark]] = field(default_factory=list)
    end: Mark | None = None
    sample: Due = NOTHING
    host_s: float = 0.0
    is_whole: bool = True


class Stopwatch:
    """Times pieces of work (`with stopwatch:`) and rounds.

    Args:
        mark: makes a mark in the device's stream; None where that is not possible now.
    """

    def __init__(self, mark: Callable[[], Mark | None] | None = None) -> None:
        self._mark = mark or _cuda_mark
        self._done_s = 0.0
        self._piece_began = 0.0
        self._piece_mark: Mark | None = None
        self._round_began = time.perf_counter()
        self._round: _Round | None = None
        """The round under way, where the device times it."""
        self._is_whole = True
        self._waiting: deque[_Round] = deque(maxlen=WAITING)

    def __enter__(self) -> None:
        self._piece_began = time.perf_counter()
        self._piece_mark = self._marked() if self._round is not None else None

    def __exit__(self, *_: object) -> None:
        begin, self._piece_mark = self._piece_mark, None
        if begin is not None and self._round is not None and (end := self._marked()) is not None:
            self._round.work.append((begin, end))
        self._done_s = self.host_s
        self._piece_began = 0.0

    @property
    def host_s(self) -> float:
        """Host time of the monitor's work in the round under way, a piece that is not over included."""
        return self._done_s + (time.perf_counter() - self._piece_began if self._piece_began else 0.0)

    def interrupt(self) -> None:
        """Something else than training happens in the round under way, an evaluation or a pause: often in the rounds
        that are sampled, since both come at multiples of ten. Its length says nothing of a sample."""
        self._is_whole = False

    def end_round(self, sample: Due, host_s: float) -> tuple[float, bool]:
        """The round is over.

        Args:
            sample: what it measured.
            host_s: host time spent in the monitor.

        Returns:
            Its length in seconds by the host's clock, and whether that says something of rounds to come.
        """
        now = time.perf_counter()
        length, self._round_began = now - self._round_began, now
        self._done_s = 0.0
        is_whole, self._is_whole = self._is_whole, True
        if self._round is not None:
            self._round.is_whole = is_whole
            self._round.end, self._round.sample, self._round.host_s = self._marked(), sample, host_s
            if self._round.end is not None:
                self._waiting.append(self._round)
        return length, is_whole

    def begin_round(self, sample: Due, *, on_device: bool) -> None:
        """What the round that begins will measure. The device times sampled rounds, and the one behind each."""
        ended, self._round = self._round, None
        if on_device and (sample.light or (ended is not None and ended.sample.light)):
            begin = ended.end if ended is not None and ended.end is not None else self._marked()
            self._round = _Round(begin) if begin is not None else None

    def timed(self) -> Iterator[Timed]:
        """Rounds whose device times have come since this was last asked."""
        while self._waiting and (end := self._waiting[0].end) is not None and end.query():
            one = self._waiting.popleft()
            try:
                work = sum(begin.elapsed_time(end) for begin, end in one.work)
                length = one.begin.elapsed_time(end)
            except RuntimeError:
                continue  # its marks lie on several devices: the host's time has to do
            yield Timed(one.sample, one.host_s, work / 1e3, length / 1e3 if one.is_whole else None)

    def _marked(self) -> Mark | None:
        """A mark at this moment; None while a graph is being captured, which would swallow it."""
        mark = self._mark()
        if mark is not None:
            mark.record()
        return mark


def _cuda_mark() -> Mark | None:
    if torch.cuda.is_current_stream_capturing():
        return None
    mark: Mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return mark
