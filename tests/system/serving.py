"""A real `internist serve` process on a free loopback port, and a reader of its public API."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PATIENCE_S = 60.0


@dataclass
class Server:
    """A running server process."""

    address: str
    process: "subprocess.Popen[bytes]"

    def get(self, path: str, **query: Any) -> Any:
        """A JSON answer."""
        answer = httpx.get(self.address + path, params=query, timeout=30)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()

    def runs(self) -> list[dict[str, Any]]:
        """All runs, whole."""
        return [self.get(f"/api/v1/runs/{one['id']}") for one in self.get("/api/v1/runs")]

    def values(self, run: str, metric: str, subject: str, *, index: int | None = None) -> dict[int, Any]:
        """Values of one series by step."""
        asked = {"metric": metric, "subject": subject, "pixels": 10_000} | ({} if index is None else {"index": index})
        window = self.get(f"/api/v1/runs/{run}/points", **asked)["windows"][0]
        return dict(zip(window["steps"], window["values"], strict=True))


@contextmanager
def served(folder: Path, *, port: int = 0, **environment: str) -> Iterator[Server]:
    """Start a server with its database in `folder`; stop it at the end if it still runs."""
    port_file = folder / f"port-{time.monotonic_ns()}"
    command = [
        sys.executable,
        "-m",
        "internist",
        "serve",
        "--port",
        str(port),
        "--port-file",
        str(port_file),
    ]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("INTERNIST_")}
    process = subprocess.Popen(
        [*command, "--database", str(folder / "internist.db")], env={**clean, **environment}, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (port_file.exists() and port_file.read_text().strip()):
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        yield Server(f"http://127.0.0.1:{port_file.read_text().strip()}", process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def wait_for(condition: Any, what: str) -> Any:
    """The condition's first true value; fails after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not seen within {PATIENCE_S:.0f} s: {what}")
