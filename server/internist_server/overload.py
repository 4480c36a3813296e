"""What stands before the API and the board when more is asked for than can be done: it never grows without bound, and
what it does begin, somebody waits for."""

import asyncio
import re
import time
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internist_server import observability
from internist_server.lanes import RETRY_AFTER_S, Busy, Lane
from internist_server.problem import problem

BODY_S: Final = 30.0
"""Seconds in which a body must have come."""
BODY_BYTES: Final = 128 << 20
"""Bytes of bodies that are held at once."""
NEVER_QUEUED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_OF_RUN: Final = re.compile(r"/api/v1/runs(?:/([^/]+)/(frames|heartbeat))?/?")
_STREAM: Final = re.compile(r"/api/v1/runs/[^/]+/stream/?")


class _Gone(Exception):  # noqa: N818
    """The client waits no more."""


class _Refused(Exception):  # noqa: N818
    """A request is answered before it comes in."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.response = problem(status, code, detail, headers)


@dataclass(frozen=True, slots=True)
class Lanes:
    """Room by what is asked for, so that readers wait for no writer and signs of life for nobody."""

    ingest: Lane
    life: Lane
    reads: Lane
    streams: Lane

    @classmethod
    def usual(cls) -> "Lanes":
        """For one server: its writers take turns at the database, so that few are enough."""
        return cls(
            ingest=Lane(4, waiting=64, name="ingest"),
            life=Lane(2, waiting=512, of_one=2, name="life"),
            reads=Lane(8, waiting=128, of_one=32, patience_s=10.0, name="reads"),
            streams=Lane(512, name="streams"),
        )

    def __iter__(self) -> Iterator[Lane]:
        return iter((self.ingest, self.life, self.reads, self.streams))


class Overload:
    """Lets requests through as there is room for them; the others are told when to come again.

    A body is read before its request takes part in the work, and within a time. Work for a client that has gone while
    it waited is not begun.
    """

    def __init__(self, app: ASGIApp, *, max_request_bytes: int, lanes: Lanes | None = None) -> None:
        self._app, self._most = app, max_request_bytes
        self._lanes = lanes if lanes is not None else Lanes.usual()
        self._held = 0

    def close(self) -> None:
        """Begin nothing any more: the server ends."""
        for lane in self._lanes:
            lane.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on when it is its turn, or answer it here."""
        if scope["type"] != "http" or scope["path"] in NEVER_QUEUED:
            await self._app(scope, receive, send)
            return
        size = self._size_of(scope)
        lane, client = self._lane_of(scope)
        try:
            inbox = await self._admit(lane, client, size, receive)
        except _Gone:
            return
        except _Refused as refused:
            await refused.response(scope, receive, send)
            return
        try:
            await self._app(scope, inbox, send)
        finally:
            self._held -= size
            lane.leave()
            inbox.close()

    async def _admit(self, lane: Lane, client: str, size: int, receive: Receive) -> "_Inbox":
        """Read the body and wait for room in a lane, which the request then has until it leaves.

        Raises:
            _Refused: it is answered so.
            _Gone: there is nobody to answer.
        """
        if size > self._most:
            raise _too_large(self._most)
        if not lane.has_room(client) or (self._held and self._held + size > BODY_BYTES):
            raise _busy(lane)
        self._held += size
        try:
            inbox, came = _Inbox(await self._read(receive), receive), time.monotonic()
            await inbox.unless_gone(lane.enter(client))
            observability.observe_wait(lane.name, time.monotonic() - came)
        except BaseException as error:
            self._held -= size
            raise (_busy(lane) if isinstance(error, Busy) else error) from None
        return inbox

    def _lane_of(self, scope: Scope) -> tuple[Lane, str]:
        """Where a request belongs, and whose it is: of what trains the run's rank, else the machine that asks."""
        host = (scope.get("client") or ("", 0))[0]
        if scope["method"] == "POST" and (found := _OF_RUN.fullmatch(scope["path"])) is not None:
            run, what = found[1], found[2]
            who = host if run is None else f"{run}?{scope['query_string'].decode('latin-1')}"
            return (self._lanes.life if what == "heartbeat" else self._lanes.ingest), who
        return (self._lanes.streams if _STREAM.fullmatch(scope["path"]) else self._lanes.reads), host

    def _size_of(self, scope: Scope) -> int:
        """Bytes to hold for a request: as many as it says, or as many as it may have."""
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length")
        if declared is None:
            return self._most if b"transfer-encoding" in headers else 0
        return int(declared) if declared.isdigit() else self._most + 1

    async def _read(self, receive: Receive) -> bytes:
        pieces, size = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > self._most:
                        raise _too_large(self._most)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            detail = f"the body had not come after {BODY_S:g} s"
            raise _Refused(408, "too_slow", detail, {"Connection": "close"}) from None


class _Inbox:
    """What a request has received already, and what it receives after that: that its client has gone."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._first: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive
        self._next: asyncio.Future[Message] | None = None

    async def __call__(self) -> Message:
        """The next message."""
        if self._first is not None:
            message, self._first = self._first, None
            return message
        if self._next is None:
            self._next = asyncio.ensure_future(self._receive())
        return await asyncio.shield(self._next)

    async def unless_gone(self, turn: Coroutine[Any, Any, None]) -> None:
        """Wait for a turn.

        Raises:
            _Gone: the client did not wait for it.
        """
        waits = asyncio.ensure_future(turn)
        self._next = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((waits, self._next), return_when=asyncio.FIRST_COMPLETED)
            if not waits.done():
                raise _Gone
            await waits
        except BaseException:
            await _withdraw(waits)
            self.close()
            raise

    def close(self) -> None:
        """Receive no more."""
        if self._next is not None:
            self._next.cancel()


async def _withdraw(turn: asyncio.Future[None]) -> None:
    """Wait for a turn no more."""
    turn.cancel()
    await asyncio.wait((turn,))


def _busy(lane: Lane) -> _Refused:
    observability.count_turned_away(lane.name)
    detail = f"more is asked of this server than it can do; come again in {RETRY_AFTER_S} s"
    return _Refused(503, "busy", detail, {"Retry-After": str(RETRY_AFTER_S)})


def _too_large(most: int) -> _Refused:
    return _Refused(413, "too_large", f"this server reads at most {most} bytes of a body")
