"""A real `internist serve` process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

DEADLINE_S = 60


@dataclass
class ServerProcess:
    """A server process, and an HTTP client for it that looks like the test client."""

    process: subprocess.Popen[str]
    address: str

    def post(self, path: str, *, content: bytes, headers: dict[str, str], params: dict[str, Any] | None = None) -> Any:
        query = "&".join(f"{name}={value}" for name, value in (params or {}).items())
        return Answer(urllib3.request("POST", f"{self.address}{path}?{query}", body=content, headers=headers))

    def get(self, path: str, params: dict[str, Any] | None = None) -> Any:
        return Answer(urllib3.request("GET", self.address + path, fields=params))


@dataclass
class Answer:
    """An answer as the test client gives it."""

    raw: Any

    @property
    def status_code(self) -> int:
        return int(self.raw.status)

    @property
    def text(self) -> str:
        return str(self.raw.data.decode())

    def json(self) -> Any:
        return self.raw.json()


@contextmanager
def server_process(database: str, directory: Path, *arguments: str, **environment: str) -> Iterator[ServerProcess]:
    """A running server; killed at the end if it still runs."""
    port_file = directory / f"port-{time.monotonic_ns()}"
    process = start(database, "--port-file", str(port_file), *arguments, **environment)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not port_file.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)  # waits for another process, which has no event to wait on
        yield ServerProcess(process, f"http://127.0.0.1:{port_file.read_text()}")
    finally:
        process.kill()
        process.communicate()


def start(database: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a server without waiting for it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INTERNIST_")}
    command = [
        sys.executable,
        "-m",
        "internist",
        "serve",
        "--database",
        database,
        "--no-board",
        *arguments,
    ]
    if "--port" not in arguments:
        command += ["--port", "0"]
    return subprocess.Popen(
        command, env={**inherited, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
