"""Connections that do not wait for ever: a request's head comes within a time and a size, and there are so many."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S: Final = 10.0
"""Seconds in which the head of a request must have come, from the connection or from its first byte."""
HEAD_BYTES: Final = 64 << 10
MAX_CONNECTIONS: Final = 900
"""Of one server: below what a process may usually hold open."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's own, which waits for a head as long as a client likes."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's is
        """Take a connection, or close it at once where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Read what came; what belongs to a head is counted."""
        if self._is_idle:
            self._await_head()
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._is_idle:
            self._end_wait()
        elif self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of a connection."""
        self._end_wait()
        super().connection_lost(exc)

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way."""
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._close)

    def _end_wait(self) -> None:
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        if self._is_idle and not self.transport.is_closing():
            self.transport.close()
