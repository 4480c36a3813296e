"""The outermost of a server: it gives every request an id, times it, and writes it down where that is wanted."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internist_server import observability
from internist_server.auth import CALLER, address_of
from internist_server.lanes import RETRY_AFTER_S
from internist_server.logs import fields
from internist_server.overload import NEVER_QUEUED
from internist_server.problem import problem
from internist_server.tracing import HEADER, request_id, working_for

log = logging.getLogger(__name__)

GONE: Final = 499
"""What is written down of a request whose client did not wait for an answer."""
_ENDING: Final = problem(503, "ending", "the server ends", {"Retry-After": str(RETRY_AFTER_S)})


class Journal:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, *, writes: bool = False, on_close: Callable[[], None] = lambda: None) -> None:
        """Around an app.

        Args:
            writes: whether each request is a line of the log; probes that find all well are not.
            on_close: ends what the app keeps waiting.
        """
        self._app, self._writes, self._on_close = app, writes, on_close
        self._is_closed = False

    def close(self) -> None:
        """Begin no request any more."""
        self._is_closed = True
        self._on_close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how long its answer took to begin, and all in all."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, sent = time.perf_counter(), 0
        status, method, path = GONE, scope["method"], scope["path"]
        request = request_id(dict(scope["headers"]).get(HEADER))

        async def send_noted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                route = getattr(scope.get("route"), "path", "other")  # a template: few labels, whatever is asked for
                observability.observe_request(method, route, status, time.perf_counter() - began)
                message = {**message, "headers": [*message.get("headers", ()), (HEADER, request.encode())]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        with working_for(request):
            try:
                await self._app(scope, receive, send_noted)
            except asyncio.CancelledError:
                if not self._is_closed or status != GONE:
                    raise
                await _ENDING(scope, receive, send_noted)  # what took longer than the server has left is no fault of it
            finally:
                if self._writes and not (status == 200 and scope["path"] in NEVER_QUEUED):
                    took_ms = round((time.perf_counter() - began) * 1000, 3)
                    _write(scope, method=method, path=path, status=status, sent=sent, took_ms=took_ms)


def _write(scope: Scope, *, method: str, path: str, status: int, sent: int, took_ms: float) -> None:
    caller = getattr(scope.get(CALLER), "name", None)
    address = address_of(scope)
    log.info(
        "%s %s %s %s %d %d B in %.1f ms", address, caller or "-", method, path, status, sent, took_ms,
        extra=fields(
            address=address, caller=caller, method=method, path=path, status=status, bytes=sent, duration_ms=took_ms
        ),
    )  # fmt: skip
