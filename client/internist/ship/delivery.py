"""Delivery of one rank's spool: slice by slice, resuming where the server says. No thread and no clock of its own."""

from collections import Counter

from internist.errors import BodyTooLarge, RequestRefused, ServerError
from internist.schema.wire import FramesReply, RunStart, RunStarted
from internist.ship import records
from internist.ship.connection import Connection, may_be_too_large
from internist.ship.reader import SpoolReader
from internist.ship.slice_size import SMALLEST, SliceSize

SLICE_BYTES = 1 << 20
_UNREADABLE = (400, 422)
_MOST_GIVEN_UP = 3
_MOST_FAILURES = 3
_MOST_REASONS = 100
_REASON_LENGTH = 300


class Delivery:
    """What the server has of one spool, and how it gets the rest.

    Attributes:
        start: who is speaking.
        acknowledged: highest sequence number that needs no more sending; -1: none.
        stored: records the server stored from this delivery.
        duplicates: records it had already.
        refused: reasons for which records were refused, with their number.
        dropped: records among those that were given up: the server, or something on the way, does not let them through.
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
        self.dropped = 0
        self.url: str | None = None
        self._reader = reader
        self._connection = connection
        self._size = SliceSize(slice_bytes)
        self._narrowed: int | None = None
        self._given_up = 0
        self._failed_alone = (-1, 0)

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
        return self._reader.read(self.acknowledged, self._narrowed or self._size.bytes)

    def send(self, body: bytes, last: int) -> FramesReply | None:
        """Send a slice that `read` gave; None if it must be read anew: a smaller one is wanted, or what follows it.

        Raises:
            ServerError: the server cannot be used now, or its acknowledgements make no progress.
        """
        try:
            reply = self._connection.send(self.start.run, body, attempt=self.start.attempt, rank=self.start.rank)
        except BodyTooLarge as error:
            self._shrink(error, body, last)
            return None
        except ServerError as error:
            if may_be_too_large(error, len(body)) and self._size.failed(len(body)):
                self._retry_smaller(error, body, last)
                return None
            if not isinstance(error, RequestRefused) or error.status not in _UNREADABLE:
                raise
            self._narrow(error, body, last)
            return None
        before = self.acknowledged
        self.acknowledged = max(-1, min(reply.acknowledged, last))
        self.stored += max(0, reply.stored)
        self.duplicates += max(0, reply.duplicates)
        if self.acknowledged <= before:
            self.acknowledged = before
            self._look_for_the_cause(reply, body, last)
            return None
        for refused in reply.refused:
            self._count_refused(refused.reason)
        self._size.passed(len(body))
        if self.acknowledged == last:
            self._narrowed = None
        self._given_up = 0
        return reply

    def _shrink(self, error: BodyTooLarge, body: bytes, last: int) -> None:
        """Send less at once from now on; what is too large by itself is given up, so that the rest gets through.

        Raises:
            BodyTooLarge: even a small record is too large for the server, so it is not the record's fault.
        """
        if len(body) <= SMALLEST:
            raise error
        self._size.too_large(len(body))
        if _holds_one(body):
            self._give_up(error, last)

    def _retry_smaller(self, error: ServerError, body: bytes, last: int) -> None:
        """What failed may have been too large. A record that is alone is tried again later, since nothing is known for
        sure, and given up once it has failed several times although the server could be reached before each.

        Raises:
            ServerError: the record should be tried again later.
        """
        if not _holds_one(body):
            return
        self._failed_alone = (last, self._failed_alone[1] + 1 if self._failed_alone[0] == last else 1)
        if self._failed_alone[1] < _MOST_FAILURES:
            raise error
        self._give_up(error, last)

    def _narrow(self, error: ServerError, body: bytes, last: int) -> None:
        """Close in on the record that the server cannot read, and give it up alone.

        Raises:
            ServerError: several in a row were refused, so it is not the records' fault.
        """
        if not _holds_one(body):
            self._narrowed = max(1, len(body) // 4)
        elif self._given_up < _MOST_GIVEN_UP:
            self._given_up += 1
            self._narrowed = None
            self._give_up(error, last)
        else:
            self._given_up = 0
            self._narrowed = None
            raise error

    def _look_for_the_cause(self, reply: FramesReply, body: bytes, last: int) -> None:
        """The server took a slice and acknowledges nothing of it.

        Raises:
            ServerError: it gives no reason, or none that lies in the records.
        """
        server, first = self._connection.server, self.acknowledged + 1
        reason = next((one.reason for one in reply.refused), None)
        if reason is None:
            raise ServerError(f"{server} acknowledges {reply.acknowledged} after it was sent {first} to {last}")
        self._narrow(RequestRefused(reason, status=422), body, last)

    def _give_up(self, error: ServerError, last: int) -> None:
        """Go on behind the one record that was sent."""
        self.dropped += 1
        self._count_refused(str(error))
        self.acknowledged = last

    def _count_refused(self, reason: str) -> None:
        known = reason in self.refused or len(self.refused) < _MOST_REASONS
        self.refused[reason[:_REASON_LENGTH] if known else "other reasons"] += 1


def _holds_one(body: bytes) -> bool:
    return records.claimed_size(body) == len(body)
