"""The sender: the thread that turns finished measurements into spool records, and has the uploader ship them.

Writing and shipping are two threads, since a server that hangs must not keep finished measurements out of the spool.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from internist.schema.wire import Directive, RunStart
from internist.ship.connection import Connection
from internist.ship.spool import Spool
from internist.ship.uploader import Uploader

_LOG = logging.getLogger(__name__)
_POLL_S = 0.01


class Sender(threading.Thread):
    """Empties the recorder into the spool, and the spool into the server. It never raises and blocks nobody.

    Args:
        spool: where records wait.
        start: who is speaking.
        connection: the server; None: nothing is sent (offline), the spool waits for `internist sync`.
        drain: turns what has arrived on the host into spool records; gives the seconds until it is worth another try,
            None if nothing waits.
        progress: the last step and its age in ms.
        pause: what the run says that it pauses for; empty: it does not.
        on_directives: receives the server's wishes; called from another thread.
        heartbeat_s: seconds between heartbeats.
        powers: by how much sampling is thinned here, for the heartbeat.
    """

    def __init__(
        self,
        spool: Spool,
        start: RunStart,
        connection: Connection | None,
        *,
        drain: Callable[[], float | None],
        progress: Callable[[], tuple[int, int]],
        on_directives: Callable[[Sequence[Directive]], None],
        pause: Callable[[], str] = str,
        heartbeat_s: float = 15.0,
        powers: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        super().__init__(name="internist-sender", daemon=True)
        self._spool = spool
        self._run = start.run
        self._drain = drain
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._complaints: set[str] = set()
        self._seen = -1
        self._worked_s = 0.0
        self._uploader = connection and Uploader(
            spool,
            start,
            connection,
            progress=progress,
            on_directives=on_directives,
            pause=pause,
            heartbeat_s=heartbeat_s,
            powers=powers,
        )

    @property
    def worked_s(self) -> float:
        """CPU seconds that writing and shipping have taken so far."""
        return self._worked_s + (self._uploader.worked_s if self._uploader else 0.0)

    @property
    def url(self) -> str | None:
        """Address of the run's page; None until the server has answered."""
        return self._uploader.delivery.url if self._uploader else None

    def start(self) -> None:
        """Begin to write and to ship."""
        super().start()
        if self._uploader:
            self._uploader.start()

    def wake(self) -> None:
        """There may be something to drain or to ship. Costs next to nothing."""
        self._awake.set()

    def tell_life(self) -> None:
        """Let the next heartbeat go out now: what it says has changed."""
        if self._uploader:
            self._uploader.tell_life()

    def restart(self, start_step: int) -> None:
        """The first step of the run was corrected: write it down, and introduce the rank to the server again."""
        self._spool.restart(start_step)
        if self._uploader:
            self._uploader.restart(start_step)

    def close(self, timeout: float) -> bool:
        """Drain, ship the rest, stop; at most `timeout` seconds. Whether the server has everything."""
        deadline = time.monotonic() + timeout
        self._closing.set()
        self._awake.set()
        if self.ident is None:
            self._empty(deadline)
        else:
            self.join(max(0.0, timeout))
        return self._uploader.close(deadline - time.monotonic()) if self._uploader else False

    def run(self) -> None:
        """Drain whenever woken, or when what waits is due, until closed and empty."""
        pause: float | None = None
        while not self._closing.is_set():
            self._awake.wait(pause)
            self._awake.clear()
            pause = self._drained()
            self._worked_s = time.thread_time()
        self._empty(None)

    def _empty(self, deadline: float | None) -> None:
        """Drain until nothing is pending."""
        while (pause := self._drained()) is not None and (deadline is None or time.monotonic() < deadline):
            time.sleep(pause)

    def _drained(self) -> float | None:
        try:
            pause = self._drain()
        except Exception as error:  # a failing recorder must not end this thread
            if repr(error) not in self._complaints:
                self._complaints.add(repr(error))
                _LOG.exception("run %s: a measurement could not be written", self._run)
            pause = None
        if self._uploader and self._spool.last_sequence != self._seen:
            self._seen = self._spool.last_sequence
            self._uploader.wake()
        return pause
