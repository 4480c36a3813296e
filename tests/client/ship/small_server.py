"""A small real HTTP server that keeps what clients send it, as an Internist server would, or misbehaves as told."""

import contextlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple

import msgspec

from internist.schema.wire import Directive, FramesReply, HeartbeatReply, Record, Refused, RunStart, RunStarted
from internist.ship import records

PATIENCE_S = 20.0

Answer = tuple[int, str, bytes]


class Request(NamedTuple):
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


def json_answer(value: object, status: int = 200) -> Answer:
    return status, "application/json", msgspec.json.encode(value)


class SmallServer:
    """Use as a context manager. `misbehave` may answer in place of the honest server; None lets it answer."""

    def __init__(self, port: int = 0, misbehave: Callable[[Request], Answer | None] = lambda _: None) -> None:
        self.misbehave = misbehave
        self.refuse: Callable[[Record], str | None] = lambda _: None
        self.directives: tuple[Directive, ...] = ()
        self.retry_after: str | None = None
        self.requests: list[Request] = []
        self.stored: dict[tuple[str, str, int], dict[int, Record]] = {}
        self.acknowledged: dict[tuple[str, str, int], int] = {}
        self.arrived: list[tuple[int, Record]] = []
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._changed = threading.Condition()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "SmallServer":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for kept in self._sockets:
            with contextlib.suppress(OSError):
                kept.shutdown(socket.SHUT_RDWR)

    def wait_for(self, holds: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(holds, PATIENCE_S)

    def steps(self) -> list[int]:
        """Steps of the stored frames, in order of arrival."""
        return [record.frame.step for _, record in self.arrived if record.frame is not None]

    def answer(self, request: Request) -> Answer:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        answer = self.misbehave(request)
        if answer is None:
            with self._changed:
                answer = self._honest(request)
                self._changed.notify_all()
        return answer

    def _honest(self, request: Request) -> Answer:
        if request.path.endswith("/api/v1/runs"):
            start = msgspec.json.decode(request.body, type=RunStart)
            key = (start.run, start.attempt, start.rank)
            known = self.acknowledged.setdefault(key, -1)
            return json_answer(RunStarted(start.run, start.attempt, 1, known, f"/runs/{start.run}"))
        run, verb = request.path.split("/")[-2:]
        if verb == "heartbeat":
            return json_answer(HeartbeatReply(self.directives))
        if not any(key[0] == run for key in self.acknowledged):
            return json_answer({"detail": f"there is no run {run}"}, 404)
        key = (run, request.headers["X-Internist-Attempt"], int(request.headers["X-Internist-Rank"]))
        stored = duplicates = 0
        refused = []
        shelf = self.stored.setdefault(key, {})
        for body in records.bodies(request.body):
            record = records.decode(body)
            reason = self.refuse(record)
            if record.sequence in shelf:
                duplicates += 1
            elif reason:
                refused.append(Refused(record.sequence, reason))
            else:
                shelf[record.sequence] = record
                self.arrived.append((key[2], record))
                stored += 1
            self.acknowledged[key] = max(self.acknowledged.get(key, -1), record.sequence)
        reply = FramesReply(self.acknowledged[key], stored, duplicates, tuple(refused), self.directives)
        return json_answer(reply)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.connections += 1
                server._sockets.append(self.request)
                super().setup()

            def do_POST(self) -> None:
                path, _, query = self.path.partition("?")
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, kind, data = server.answer(Request(path, query, dict(self.headers), body))
                try:
                    self.send_response(status)
                    if 300 <= status < 400:
                        self.send_header("Location", data.decode())
                    if status == 503 and server.retry_after is not None:
                        self.send_header("Retry-After", server.retry_after)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the client has gone

            def log_message(self, format: str, *args: object) -> None: ...

        return Handler
