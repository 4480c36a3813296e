"""The thread that keeps one Alertmanager told of what fires, by its API v2, as Prometheus does."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

import httpx

from internist.schema.alerts import Alert
from internist_server.alerts.addresses import receiver_name
from internist_server.alerts.outbox import REFRESHES, Entry, Outbox, entry_of, to_post
from internist_server.alerts.poster import Poster, post
from internist_server.errors import DeliveryError

logger = logging.getLogger(__name__)

PATH: Final = "/api/v2/alerts"
TIMEOUT_S: Final = 5.0
BATCH: Final = 64
"""Alerts of one request, as with Prometheus."""
GATHER_S: Final = 0.05
"""Between two looks at what has changed: a run that is judged often is not looked at more often than that."""
RETRY_S: Final = 0.5
"""Before the first repetition of what was not taken; twice as long each time,"""
LONGEST_RETRY_S: Final = 30.0
"""up to this, or to a refresh where that is less."""


class Pusher(Poster):
    """Tells one Alertmanager of what fires: at once when it changes, and all of it again before it would expire there.

    What is not taken is told again, later each time. Nobody waits for it: who changes a run calls `changed`, which only
    wakes this thread.
    """

    def __init__(
        self,
        url: str,
        *,
        read_firing: Callable[[Collection[str] | None], Sequence[Alert]],
        read_ended: Callable[[int], Sequence[Alert]],
        external_url: str,
        refresh_s: float,
        clock: Callable[[], int],
    ) -> None:
        """A thread that is not started yet.

        Args:
            url: of the Alertmanager, without the path of its API.
            read_firing: what fires now, of these runs or (None) of all.
            read_ended: what was over at this moment (ms since 1970) or later.
            external_url: this server's address as readers see it.
            refresh_s: seconds between two times that all is told; an alert expires there after four times as long.
            clock: ms since 1970.
        """
        super().__init__(f"internist-alertmanager {receiver_name(url)}", timeout_s=TIMEOUT_S)
        self._url, self._shown = url.rstrip("/") + PATH, receiver_name(url)
        self._read_firing, self._read_ended = read_firing, read_ended
        self._external_url, self._clock = external_url, clock
        self._refresh_s = refresh_s
        self._lifetime_ms = int(REFRESHES * refresh_s * 1000)
        self._outbox = Outbox(lifetime_ms=self._lifetime_ms)
        self._refresh_at: float | None = None
        self._failures = 0
        self._lock = threading.Lock()
        self._changed: set[str] = set()

    def changed(self, run: str) -> None:
        """Looks at this run at once; callable from any thread."""
        with self._lock:
            self._changed.add(run)
        self.wake()

    def go_round(self, client: httpx.Client) -> None:
        """Looks at what has changed, and tells it."""
        try:
            self._look()
            self._tell(client)
        except (httpx.HTTPError, DeliveryError) as error:
            self._fail(str(error) or type(error).__name__)
        except Exception:
            logger.exception("alerts could not be read for %s", self._shown)
            self._refresh_at = None  # what has changed is not lost: all is looked at
            self._failures += 1
        else:
            self._succeed()

    def _look(self) -> None:
        """Takes what has changed into the outbox; all of it when a refresh is due."""
        with self._lock:
            runs, self._changed = self._changed, set()
        now_ms, now_s = self._clock(), time.monotonic()
        if self._refresh_at is not None and now_s < self._refresh_at:
            if runs:
                self._outbox.see(self._entries(self._read_firing(runs)), runs=runs, now_ms=now_ms)
            return
        self._outbox.see(self._entries(self._read_firing(None)), runs=None, now_ms=now_ms)
        if self._refresh_at is None:
            self._outbox.recall(self._entries(self._read_ended(now_ms - self._lifetime_ms)), now_ms=now_ms)
        self._outbox.refresh(now_ms=now_ms)
        self._refresh_at = now_s + self._refresh_s

    def _entries(self, alerts: Sequence[Alert]) -> list[Entry]:
        return [entry_of(alert, external_url=self._external_url) for alert in alerts]

    def _tell(self, client: httpx.Client) -> None:
        """Posts what is due. A batch that is refused does not keep the others from theirs.

        Raises:
            DeliveryError: a batch was refused.
            httpx.HTTPError: nobody answered; what is left is not tried.
        """
        refused = ""
        due = self._outbox.due()
        for first in range(0, len(due), BATCH):
            if self._stopping.is_set():
                return
            entries, now_ms = due[first : first + BATCH], self._clock()
            body = [to_post(one, now_ms=now_ms, lifetime_ms=self._lifetime_ms) for one in entries]
            try:
                post(client, self._url, body)
                self._outbox.accept(entries)
            except DeliveryError as error:
                refused = str(error)
        if refused:
            raise DeliveryError(refused)

    def _fail(self, reason: str) -> None:
        if self._failures == 0:
            logger.warning("%s does not take alerts, and is told again until it does: %s", self._shown, reason)
        self._failures += 1

    def _succeed(self) -> None:
        if self._failures:
            logger.warning("%s takes alerts again, after %d times that it did not", self._shown, self._failures)
        self._failures = 0

    def wait(self) -> None:
        """Until there is something to tell: after a failure, until it is time to try again."""
        if self._failures:
            longest = min(LONGEST_RETRY_S, self._refresh_s)
            self._stopping.wait(min(RETRY_S * 2 ** min(self._failures - 1, 16), longest))
            return
        until = time.monotonic() if self._refresh_at is None else self._refresh_at
        self._due.wait(max(0.0, until - time.monotonic()))
        self._stopping.wait(GATHER_S)
