"""A real Alertmanager as a process, and a receiver of what it sends."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = 60.0
"""How long a test waits for another process before it fails."""


@dataclass
class Alertmanager:
    """A running Alertmanager."""

    address: str
    process: "subprocess.Popen[bytes]"

    def alerts(self) -> list[dict[str, Any]]:
        """What fires there, muted or not, as far as it has been looked at there."""
        answer = httpx.get(f"{self.address}/api/v2/alerts", timeout=10)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        return [one for one in found if one["status"]["state"] != "unprocessed"]

    def await_alerts(self, holds: Callable[[list[dict[str, Any]]], Any], what: str) -> list[dict[str, Any]]:
        """What fires there as soon as this holds of it."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(found := self.alerts()):
            assert time.monotonic() < deadline, f"not seen within {DEADLINE_S:.0f} s: {what}; {found}"
            time.sleep(0.02)  # waits for another process, which has no event to wait on
        return found

    def silence(self, **labels: str) -> None:
        """Let nobody hear of what has these labels, for an hour."""
        body = {
            "matchers": [{"name": name, "value": value, "isRegex": False} for name, value in labels.items()],
            "startsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "endsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600)),
            "createdBy": "ada",
            "comment": "known",
        }
        answer = httpx.post(f"{self.address}/api/v2/silences", json=body, timeout=10)
        assert answer.status_code == 200, answer.text


@contextmanager
def alertmanager_process(
    program: str, directory: Path, config: Path, *, port: int | None = None
) -> Iterator[Alertmanager]:
    """An Alertmanager that is ready, alone in its cluster; killed at the end."""
    port = free_port() if port is None else port
    address = f"http://127.0.0.1:{port}"
    storage = directory / f"alertmanager-{port}"
    command = [program, f"--config.file={config}", f"--storage.path={storage}", "--cluster.listen-address="]
    log = directory / f"alertmanager-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not _is_ready(address):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)  # waits for another process, which has no event to wait on
        yield Alertmanager(address, process)
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Inbox:
    """What a webhook of an Alertmanager has heard, and a configuration that sends it everything without delay."""

    config: Path
    failures: list[int] = field(default_factory=list)
    """What it answers first; 200 afterwards."""
    url: str = ""
    heard: list[Any] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def await_bodies(self, count: int) -> list[Any]:
        """The first bodies of any kind."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.heard) >= count, DEADLINE_S), f"not {count} bodies: {self.heard}"
            return self.heard[:count]

    def await_status(self, status: str) -> dict[str, Any]:
        """The first body of this status."""

        def found() -> dict[str, Any] | None:
            return next((body for body in self.heard if body["status"] == status), None)

        with self.news:
            assert self.news.wait_for(lambda: found() is not None, DEADLINE_S), f"nobody said {status}: {self.heard}"
        body = found()
        assert body is not None
        return body

    def statuses(self) -> list[str]:
        """The status of each body, in order."""
        return [body["status"] for body in self.heard]


@contextmanager
def inbox(directory: Path, *, failures: Sequence[int] = ()) -> Iterator[Inbox]:
    """A webhook receiver on this machine."""
    state = Inbox(directory / "alertmanager.yml", list(failures))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.news:
                state.heard.append(body)
                state.news.notify_all()
            self.send_response(state.failures.pop(0) if state.failures else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    state.config.write_text(
        "route: {receiver: test, group_by: [run, condition], group_wait: 0s, group_interval: 200ms}\n"
        f"receivers: [{{name: test, webhook_configs: [{{url: '{state.url}/'}}]}}]\n"
    )
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(DEADLINE_S)


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/-/ready", timeout=10).status_code == 200
    except httpx.TransportError:
        return False
