"""Delivery of one rank's spool: slice by slice, resuming where the server says. No thread and no clock of its own."""

from collections import Counter

from internist.errors import RequestRefused, ServerError
from internist.schema.wire import FramesReply, RunStart, RunStarted
from internist.ship.connection import Connection
from internist.ship.reader import SpoolReader

SLICE_BYTES = 1 << 20
_SMALLEST_SLICE = 4 << 10
_INDIGESTIBLE = (400, 413, 422)
_MOST_GIVEN_UP = 3
_MOST_REASONS = 100
_REASON_LENGTH = 300


class Delivery:
    """What the server has of one spool, and how it gets the rest.

    Attributes:
        start: who is speaking.
        acknowledged: highest sequence number that needs no more sending; -1: none.
        stored: records the server stored from this delivery.
        duplicates: records it had already.
        refused: reasons for which it refused records, with their number.
        url: address of the run's page, once the server has said it.
    """

    def __init__(
        self, reader: SpoolReader, start: RunStart, connection: Connection, *, slice_bytes: int = SLICE_BYTES
    ) -> None:
        self.start = start
        self.acknowledged = -1
        self.stored = 0
        self.duplicates = 0
        self.refused: Counter[str] = Counter()
        self.url: str | None = None
        self._reader = reader
        self._connection = connection
        self._widest = slice_bytes
        self._slice_bytes = slice_bytes
        self._given_up = 0

    @property
    def corrupt(self) -> int:
        """Damaged places of the spool that were skipped."""
        return self._reader.corrupt

    def begin(self) -> RunStarted:
        """Introduce the rank to the server and resume behind what it has.

        Raises:
            ServerError: the server cannot be used now.
        """
        started = self._connection.start_run(self.start)
        self.acknowledged = max(-1, started.acknowledged)
        if started.url.startswith("/"):
            self.url = self._connection.server + started.url
        return started

    def read(self) -> tuple[bytes, int]:
        """The slice that is next, and its last sequence number; empty when nothing is left."""
        return self._reader.read(self.acknowledged, self._slice_bytes)

    def send(self, body: bytes, last: int) -> FramesReply | None:
        """Send a slice that `read` gave; None if it must be read anew because the server wants smaller ones.

        Raises:
            ServerError: the server cannot be used now, or its acknowledgements make no progress.
        """
        try:
            reply = self._connection.send(self.start.run, body, attempt=self.start.attempt, rank=self.start.rank)
        except RequestRefused as error:
            if error.status not in _INDIGESTIBLE:
                raise
            self._swallow(error, last)
            return None
        before = self.acknowledged
        self.acknowledged = max(-1, min(reply.acknowledged, last))
        self.stored += max(0, reply.stored)
        self.duplicates += max(0, reply.duplicates)
        for refused in reply.refused:
            self._count_refused(refused.reason)
        if self.acknowledged <= before:
            raise ServerError(
                f"{self._connection.server} acknowledges {reply.acknowledged} after it was sent {before + 1} to {last}"
            )
        if self.acknowledged == last:
            self._slice_bytes = self._widest
        self._given_up = 0
        return reply

    def _swallow(self, error: RequestRefused, last: int) -> None:
        """Narrow the slice; once it holds one record only, give that one up so that the rest gets through.

        Raises:
            RequestRefused: several in a row were refused, so it is not the records' fault.
        """
        if self._slice_bytes > _SMALLEST_SLICE:
            self._slice_bytes //= 4
        elif self._slice_bytes > 1:
            self._slice_bytes = 1
        elif self._given_up < _MOST_GIVEN_UP:
            self._given_up += 1
            self._count_refused(str(error))
            self.acknowledged = last
            self._slice_bytes = self._widest
        else:
            self._given_up = 0
            self._slice_bytes = self._widest
            raise error

    def _count_refused(self, reason: str) -> None:
        known = reason in self.refused or len(self.refused) < _MOST_REASONS
        self.refused[reason[:_REASON_LENGTH] if known else "other reasons"] += 1
