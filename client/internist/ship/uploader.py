"""The uploader: the thread that takes the spool to the server, retries, and tells the server that the run lives."""

import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from internist.errors import NotInternist, RequestRefused, ServerBusy, ServerError, ServerUnreachable, TokenRefused
from internist.schema.wire import Directive, Heartbeat, RunStart
from internist.ship.connection import Connection
from internist.ship.delivery import Delivery
from internist.ship.reader import SpoolReader
from internist.ship.spool import Spool

_LOG = logging.getLogger(__name__)
_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 30.0
_MOST_DOUBLINGS = 6
_GATHER_S = 0.2
_MOST_COMPLAINTS = 30
_BUSY_SAID = 10
"""Times in a row that a busy server sends us away before that is said."""
_KINDS = (TokenRefused, NotInternist, RequestRefused, ServerUnreachable, ServerError)
_OUTAGES = {kind.__name__ for kind in _KINDS}


class Uploader(threading.Thread):
    """Ships the spool of one rank until it is told to stop. Whatever the server does, the spool only waits.

    Args:
        spool: what is shipped; it is told what the server has.
        start: who is speaking.
        connection: the server.
        progress: the last step and its age in ms, for the heartbeat.
        on_directives: receives the server's wishes.
        pause: what the run says that it pauses for, for the heartbeat; empty: it does not.
        heartbeat_s: seconds between heartbeats.
        powers: by how much sampling is thinned here, for the heartbeat.
    """

    def __init__(
        self,
        spool: Spool,
        start: RunStart,
        connection: Connection,
        *,
        progress: Callable[[], tuple[int, int]],
        on_directives: Callable[[Sequence[Directive]], None],
        pause: Callable[[], str],
        heartbeat_s: float,
        powers: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        super().__init__(name="internist-uploader", daemon=True)
        self.delivery = Delivery(SpoolReader(spool.directory), start, connection)
        self._spool = spool
        self._run = start.run
        self._attempt = start.attempt
        self._rank = start.rank
        self._connection = connection
        self._progress = progress
        self._on_directives = on_directives
        self._pause = pause
        self._heartbeat_s = heartbeat_s
        self._powers = powers
        self._level = logging.WARNING if start.rank == 0 else logging.INFO
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._random = random.Random()  # never the global one: it belongs to the training
        self._begun = False
        self._failures = self._given_way = 0
        self._retry_at = 0.0
        self._heartbeat_due = 0.0
        self._said: set[str] = set()
        self.worked_s = 0.0
        """CPU seconds that it has taken so far."""

    def wake(self) -> None:
        """There is something new to ship."""
        self._awake.set()

    def tell_life(self) -> None:
        """Send the next heartbeat now."""
        self._heartbeat_due = 0.0
        self._awake.set()

    def restart(self, start_step: int) -> None:
        """The first step of the run was corrected: introduce the rank to the server again."""
        self.delivery.start = replace(self.delivery.start, start_step=start_step)
        self._begun = False

    def close(self, timeout: float) -> bool:
        """Ship the rest within `timeout` seconds, then stop; whether the server has everything."""
        self._closing.set()
        self._awake.set()
        if self.ident is not None:
            self.join(max(0.0, timeout))
        self._abandoned.set()
        return self.delivery.acknowledged >= self._spool.last_sequence

    def run(self) -> None:
        """Ship until closed."""
        while not self._closing.is_set():
            pause = self._turn()
            self.worked_s = time.thread_time()
            self._closing.wait(_GATHER_S)  # what follows a frame at once travels together
            self._awake.wait(max(0.0, pause - _GATHER_S))
            self._awake.clear()
        was_down = self._failures > 0
        while not self._abandoned.is_set():
            self._retry_at = 0.0
            pause = self._turn()
            if was_down or self._failures == 0:
                break
            self._abandoned.wait(pause)
        self._connection.close()

    def _turn(self) -> float:
        """Ship everything there is, unless it is too early for another try; seconds until the next turn is due."""
        if (wait := self._retry_at - time.monotonic()) > 0:
            return wait
        try:
            self._ship()
        except ServerBusy as error:
            self._give_way(error)
        except ServerError as error:
            self._fail(error, _LAST_RETRY_S if isinstance(error, TokenRefused) else _FIRST_RETRY_S)
        except Exception as error:  # whatever it is, it must neither end this thread nor reach the training
            self._say_once(repr(error), logging.ERROR, "run %s: frames are not sent: %r", self._run, error)
            self._fail(None, _FIRST_RETRY_S)
        else:
            self._recover()
            return max(0.0, self._heartbeat_due - time.monotonic())
        return max(0.0, self._retry_at - time.monotonic())

    def _ship(self) -> None:
        if not self._begun:
            self._begin()
        while not self._abandoned.is_set():
            if not self._closing.is_set() and time.monotonic() >= self._heartbeat_due:
                self._send_heartbeat()
            if self.delivery.acknowledged >= self._spool.last_sequence:
                return
            body, last = self.delivery.read()
            if not body:
                return
            dropped = self.delivery.dropped
            reply = self.delivery.send(body, last)
            self._spool.lose(self.delivery.dropped - dropped)
            self._spool.acknowledge(self.delivery.acknowledged)
            self._say_refusals()
            if reply is not None:
                self._pass_on(reply.directives)

    def _begin(self) -> None:
        self.delivery.begin()
        if self.delivery.acknowledged > self._spool.last_sequence:
            self._say_once(
                "ahead", logging.WARNING,
                "run %s: the server already has records up to %d of attempt %s, but %s ends at %d; new ones up to there"
                " are taken for copies. Give every start its own INTERNIST_ATTEMPT.",
                self._run, self.delivery.acknowledged, self._attempt, self._spool.directory, self._spool.last_sequence,
            )  # fmt: skip
            self.delivery.acknowledged = self._spool.last_sequence
        self._spool.acknowledge(self.delivery.acknowledged)
        self._begun = True
        self._tell_address()
        self._heartbeat_due = 0.0  # at once: from its first heartbeat on the server can notice that a run is lost

    def _tell_address(self) -> None:
        """Say once where the run is seen: in the log, or on the terminal of a script that has set up no log at all."""
        url = self.delivery.url
        if url is None or self._rank != 0 or url in self._said:
            return
        self._said.add(url)
        message = f"run {self._run}, {self.delivery.start.name}: {url}"
        if _LOG.hasHandlers():
            _LOG.info("%s", message)
        elif sys.stderr is not None:
            sys.stderr.write(f"internist: {message}\n")

    def _send_heartbeat(self) -> None:
        self._heartbeat_due = time.monotonic() + self._heartbeat_s
        step, age_ms = self._progress()
        powers = tuple(self._powers())
        heartbeat = Heartbeat(self._attempt, self._rank, step, age_ms, self._pause(), powers)
        reply = self._connection.heartbeat(self._run, heartbeat)
        self._pass_on(reply.directives)

    def _say_refusals(self) -> None:
        for reason in self.delivery.refused:
            self._say_once(reason, logging.WARNING, "run %s: the server refused records: %s", self._run, reason)

    def _pass_on(self, directives: Sequence[Directive]) -> None:
        if directives:
            try:
                self._on_directives(directives)
            except Exception as error:  # the sampling's trouble must not keep frames from being sent
                self._say_once(repr(error), logging.ERROR, "run %s: directives were not followed: %r", self._run, error)

    def _fail(self, error: ServerError | None, first: float) -> None:
        """Retry later, and say so once per outage and kind of failure."""
        self._begun = False  # it may come back with less than it had
        delay = min(_LAST_RETRY_S, first * 2 ** min(self._failures, _MOST_DOUBLINGS))
        self._failures += 1
        self._retry_at = time.monotonic() + delay * self._random.uniform(0.5, 1.0)
        if error is not None:
            self._say_once(
                _outage(error), self._level, "run %s: %s. Training goes on; frames wait in %s%s",
                self._run, error, self._spool.directory, _advice(error),
            )  # fmt: skip

    def _give_way(self, error: ServerBusy) -> None:
        """Come again when the server asks to. It has lost nothing, so that it need not be told anew who speaks, and
        nothing is said before it has been so for a while."""
        self._retry_at = time.monotonic() + error.wait_s * self._random.uniform(1.0, 2.0)
        self._given_way += 1
        if self._given_way >= _BUSY_SAID:
            self._failures = max(self._failures, 1)
            self._say_once(
                _outage(error), self._level, "run %s: %s. Training goes on; frames wait in %s%s",
                self._run, error, self._spool.directory, _advice(error),
            )  # fmt: skip

    def _recover(self) -> None:
        if self._failures and self._said & _OUTAGES:
            # A warning too, since it must be seen wherever the first one was.
            _LOG.log(self._level, "run %s: frames arrive at %s again", self._run, self._connection.server)
        self._failures = self._given_way = 0
        self._said -= _OUTAGES

    def _say_once(self, key: str, level: int, message: str, *values: object) -> None:
        if key not in self._said and (key in _OUTAGES or len(self._said) < _MOST_COMPLAINTS):
            self._said.add(key)
            _LOG.log(level, message, *values)


def _outage(error: ServerError) -> str:
    """The kind of failure, which is said once per outage."""
    return next(kind.__name__ for kind in _KINDS if isinstance(error, kind))


def _advice(error: ServerError) -> str:
    """What to type so that the frames get through."""
    if isinstance(error, TokenRefused):
        return " until INTERNIST_TOKEN, or what `internist login` keeps, is a token that this server knows."
    if isinstance(error, ServerUnreachable | NotInternist):
        return " and arrive by themselves once it runs: type `internist serve`"
    return " and are sent again."
