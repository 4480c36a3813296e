"""How long each part of the monitor's work takes, and the rounds around it: on the host and, where the model is on a
GPU, on the device. Device times are read when they have come; nothing waits for them."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import torch

from internist.observe.sampling import NOTHING, Due

WAITING = 64
"""Rounds whose device times are waited for at most; beyond, the oldest is forgotten."""


class Part(IntEnum):
    """The monitor's work by the class of sample that asks for it."""

    LIGHT = 0
    HEAVY = 1
    MATRICES = 2


class Spent(NamedTuple):
    """Seconds that each part of the work took."""

    light: float = 0.0
    heavy: float = 0.0
    matrices: float = 0.0

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.light + self.heavy + self.matrices

    def beyond(self, other: "Spent") -> float:
        """By how much these are longer, part by part."""
        return sum(max(0.0, mine - theirs) for mine, theirs in zip(self, other, strict=True))


NO_TIME = Spent()


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
    host: Spent
    """Host time of the monitor's work."""
    device: Spent
    """Device time from the begin to the end of each of its pieces."""
    length_s: float | None
    """Device time of the whole round; None where something else than training lies in it."""


@dataclass(slots=True)
class _Round:
    begin: Mark
    work: list[tuple[Part, Mark, Mark]] = field(default_factory=list)
    end: Mark | None = None
    sample: Due = NOTHING
    host: Spent = NO_TIME
    is_whole: bool = True


class Piece:
    """Times what happens within `with` as a part of the work. A piece may lie within another, which stands still."""

    __slots__ = ("_part", "_stopwatch")

    def __init__(self, stopwatch: "Stopwatch", part: Part) -> None:
        self._stopwatch, self._part = stopwatch, part

    def __enter__(self) -> None:
        self._stopwatch.begin(self._part)

    def __exit__(self, *_: object) -> None:
        self._stopwatch.end()


class Stopwatch:
    """Times pieces of work (`with stopwatch.light:`) and rounds.

    Args:
        mark: makes a mark in the device's stream; None where that is not possible now.
    """

    def __init__(self, mark: Callable[[], Mark | None] | None = None) -> None:
        self._mark = mark or _cuda_mark
        self.light, self.heavy, self.matrices = (Piece(self, part) for part in Part)
        self._parts = [0.0] * len(Part)
        self._open: list[Part] = []
        """Pieces under way, innermost last."""
        self._since = 0.0
        self._since_mark: Mark | None = None
        self._round_began = time.perf_counter()
        self._round: _Round | None = None
        """The round under way, where the device times it."""
        self._is_whole = True
        self._waiting: deque[_Round] = deque(maxlen=WAITING)

    def begin(self, part: Part) -> None:
        """A piece of the work begins."""
        self._turn()
        self._open.append(part)

    def end(self) -> None:
        """The innermost piece is over."""
        try:
            self._turn()
        finally:
            self._open.pop()

    def add(self, part: Part, seconds: float) -> None:
        """Host time that was taken without a piece, where it is not within one."""
        if not self._open:
            self._parts[part] += seconds

    @property
    def host(self) -> Spent:
        """Host time of the monitor's work in the round under way, a piece that is not over included."""
        if self._open:
            self._turn()
        return Spent(*self._parts)

    def interrupt(self) -> None:
        """Something else than training happens in the round under way, an evaluation or a pause: often in the rounds
        that are sampled, since both come at multiples of ten. Its length says nothing of a sample."""
        self._is_whole = False

    def end_round(self, sample: Due) -> tuple[Spent, float, bool]:
        """The round is over.

        Args:
            sample: what it measured.

        Returns:
            Host time of the monitor's work in it, its length in seconds by the host's clock, and whether that says
            something of rounds to come.
        """
        host = self.host
        now = time.perf_counter()
        length, self._round_began = now - self._round_began, now
        self._parts = [0.0] * len(Part)
        is_whole, self._is_whole = self._is_whole, True
        if self._round is not None:
            self._round.is_whole = is_whole
            self._round.end, self._round.sample, self._round.host = self._marked(), sample, host
            if self._round.end is not None:
                self._waiting.append(self._round)
        return host, length, is_whole

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
                parts = [0.0] * len(Part)
                for part, began, ended in one.work:
                    parts[part] += began.elapsed_time(ended) / 1e3
                length = one.begin.elapsed_time(end)
            except RuntimeError:
                continue  # its marks lie on several devices: the host's time has to do
            yield Timed(one.sample, one.host, Spent(*parts), length / 1e3 if one.is_whole else None)

    def _turn(self) -> None:
        """What is under way stands still, or goes on: count what has passed for the innermost piece."""
        now, mark = time.perf_counter(), self._marked() if self._round is not None else None
        if self._open:
            part = self._open[-1]
            self._parts[part] += now - self._since
            if self._since_mark is not None and mark is not None and self._round is not None:
                self._round.work.append((part, self._since_mark, mark))
        self._since, self._since_mark = now, mark

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
