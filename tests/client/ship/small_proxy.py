"""A small real proxy before a server: bodies over its limit do not pass, and it says so in one of many ways."""

import http.client
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

PAGE = (
    b"<html><head><title>413 Request Entity Too Large</title></head><body><center><h1>413 Request Entity Too Large"
    b"</h1></center><hr><center>nginx/1.26</center></body></html>"
)
ANSWERS = {
    "413 html": (413, "text/html", PAGE),
    "413 json": (413, "application/json", b'{"message": "entity too large"}'),
    "413 empty": (413, "", b""),
    "400 html": (400, "text/html", b"<html>Bad Request</html>"),
    "403 html": (403, "text/html", b"<html>Request blocked</html>"),
    "502 html": (502, "text/html", b"<html>Bad Gateway</html>"),
}
CUTS = ("reset at once", "closed after reading", "closed without reading")
KINDS = (*ANSWERS, *CUTS)


class SmallProxy:
    """Use as a context manager.

    Attributes:
        address: where clients reach the server through it.
        sizes: bytes of the bodies that came.
        refused: bytes of those that did not pass.
    """

    def __init__(self, server: str, *, limit: int, kind: str) -> None:
        self.sizes: list[int] = []
        self.refused: list[int] = []
        self._server = server.removeprefix("http://")
        self._limit = limit
        self._kind = kind
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "SmallProxy":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                proxy.sizes.append(size)
                if size <= proxy._limit:
                    self._forward(size)
                    return
                proxy.refused.append(size)
                if proxy._kind in ANSWERS:
                    self.rfile.read(size)
                    self._answer(*ANSWERS[proxy._kind])
                    return
                if proxy._kind == "closed after reading":
                    self.rfile.read(size)
                elif proxy._kind == "reset at once":
                    at_once = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                self.close_connection = True

            def _forward(self, size: int) -> None:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                server = http.client.HTTPConnection(proxy._server)
                try:
                    server.request("POST", self.path, self.rfile.read(size), headers)
                    answer = server.getresponse()
                    self._answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
                finally:
                    server.close()

            def _answer(self, status: int, kind: str, data: bytes) -> None:
                self.send_response(status)
                if kind:
                    self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None: ...

        return Handler
