"""Whose clock says what: the server's own, which may be set while it runs, and clients', which may be wrong.

No client's clock decides anything: what it says is turned into the server's time where it comes in. Nothing that lasts
is measured across a moment at which the server's own clock was set.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

SYNCED_WITHIN_MS: Final = 60_000
"""A client's clock this near to the server's is taken as it is: nothing hangs on a minute."""
SAME_WITHIN_MS: Final = 1_000
"""Two readings of a client's clock this near to each other are one: the difference is the way to the server."""
AHEAD_MS: Final = 900_000
"""A moment further ahead of its receipt than this was none: it is taken for that of its receipt."""
STEP_MS: Final = 2_000
"""The server's clock was set when it and a clock that nobody sets differ by this much between two readings."""


def system_clock_ms() -> int:
    """The machine's clock, in ms since 1970."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """A clock that nobody sets, in ms."""
    return time.monotonic_ns() // 1_000_000


class ServerClock:
    """The server's clock, and since when what it says can be compared.

    Silence counts only while somebody has listened: from the start of the server, or from when its clock was set or
    the machine slept. `listening_since_ms` is that moment.
    """

    def __init__(
        self, wall_ms: Callable[[], int] = system_clock_ms, steady_ms: Callable[[], int] | None = monotonic_ms
    ) -> None:
        """A clock that listens from now on.

        Args:
            wall_ms: ms since 1970.
            steady_ms: a clock that nobody sets; None: nobody sets the other one.
        """
        self._wall_ms, self._steady_ms = wall_ms, steady_ms if steady_ms is not None else wall_ms
        self._lock = threading.Lock()
        self._last = (self._wall_ms(), self._steady_ms())
        self.listening_since_ms = self._last[0]

    def __call__(self) -> int:
        """Ms since 1970."""
        with self._lock:
            before, now = self._last, (self._wall_ms(), self._steady_ms())
            self._last = now
            jump = (now[0] - before[0]) - (now[1] - before[1])
            if abs(jump) > STEP_MS:
                log.warning("the clock of this machine was set by %+.1f s, or it slept", jump / 1000)
                self.listening_since_ms = now[0]
        return now[0]


def as_server_clock(clock: Callable[[], int]) -> ServerClock:
    """A clock as a server's; one that is no server's already is taken for one that nobody sets."""
    return clock if isinstance(clock, ServerClock) else ServerClock(clock, None)


def offset_by(kept_ms: int | None, reading_ms: int | None) -> int | None:
    """How far the server's clock is ahead of a client's, by what was known and by a new reading; None: not known."""
    if reading_ms is None or (kept_ms is not None and abs(reading_ms - kept_ms) <= SAME_WITHIN_MS):
        return kept_ms
    return reading_ms


def server_moment(said_ms: int, offset_ms: int | None, *, now_ms: int) -> int:
    """When it was by the server's clock what a client says that it was by its own."""
    if offset_ms is not None and abs(offset_ms) > SYNCED_WITHIN_MS:
        said_ms += offset_ms
    return max(0, said_ms) if said_ms <= now_ms + AHEAD_MS else now_ms


def began_at_ms(started_at_ms: int, sent_at_ms: int | None, *, now_ms: int) -> int:
    """When an attempt began by the server's clock: how long ago that was its client says, by one clock and not by two.

    Where the client does not say when it spoke, it has begun now.
    """
    return now_ms if sent_at_ms is None else max(0, now_ms - max(0, sent_at_ms - started_at_ms))
