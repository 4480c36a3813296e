"""A real Prometheus as a process, that scrapes what its configuration names."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server.alertmanagers import DEADLINE_S, free_port


@dataclass
class Prometheus:
    """A running Prometheus."""

    client: httpx.Client
    """Of its API."""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        answer = self.client.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, (expression, answer.text)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The only value that an expression gives now; None: it gives none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def rules(self) -> list[dict[str, Any]]:
        """The rules that it has loaded."""
        groups = self.client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def await_value(self, expression: str, holds: Callable[[float], bool]) -> float:
        """The value of an expression as soon as this holds of it."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.value(expression)) is None or not holds(found):
            assert time.monotonic() < deadline, f"{expression} was {found} for {DEADLINE_S:.0f} s"
            time.sleep(0.05)  # waits for another process, which has no event to wait on
        return found


@contextmanager
def prometheus_process(program: str, directory: Path, config: Path) -> Iterator[Prometheus]:
    """A Prometheus that is ready; killed at the end."""
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"]
    log, client = directory / "prometheus.log", httpx.Client(base_url=f"http://{address}", timeout=10)
    with log.open("wb") as out:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not _is_ready(client):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)  # waits for another process, which has no event to wait on
        yield Prometheus(client)
    finally:
        process.kill()
        process.wait()
        client.close()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
