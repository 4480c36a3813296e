"""A webhook receiver on this machine, as an alert's addressee: it keeps every body it is sent."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY_BYTES = 1 << 20


class Receiver:
    """Listens on a free loopback port until it is closed."""

    def __init__(self, on_body: Callable[[dict[str, Any]], None]) -> None:
        self.bodies: list[dict[str, Any]] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """Take one notification."""
                length = min(int(self.headers.get("Content-Length", 0)), MAX_BODY_BYTES)
                try:
                    body = json.loads(self.rfile.read(length))
                except ValueError:
                    self.send_error(400)
                    return
                bodies.append(body)
                self.send_response(200)
                self.end_headers()
                on_body(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: bodies are printed by whoever listens."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/alerts"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
