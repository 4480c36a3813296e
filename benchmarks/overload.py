"""What a server still does when ten times as much is asked of it as it can do: `python -m benchmarks.overload`.

Clients that send a frame, and then the next one, measure how much the server can do. Then so many clients come at once
that they ask for ten times that, each on a connection of its own and each giving up after a while, as training
processes do; some of them are sent away with `Retry-After`, and come again then. Goodput is what was acknowledged.
`/healthz` is asked all the while.

Needs nothing but the packages of the server; the figures are of the machine's own, on which the clients run, too.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import urllib3

from internist.schema.wire import SPOOL_CONTENT_TYPE
from tests.server.processes import ServerProcess, server_process
from tests.server.sending import Sender, module_series, spool, start_of

SERIES: Final = 1_000
FRAMES: Final = 4
"""Of one request."""
ENOUGH: Final = 0.7
"""Of the capacity that must be left under ten times the load."""
PATIENCE_S: Final = 30.0
LEAST: Final = 4
"""Clients that are enough to keep the server at work."""


@dataclass
class Count:
    """What came of requests."""

    taken: int = 0
    sent_away: int = 0
    lost: int = 0
    by_client: dict[str, int] = field(default_factory=dict)
    health_s: list[float] = field(default_factory=list)


class Client(threading.Thread):
    """A rank that sends frames until it is told to stop."""

    def __init__(self, server: ServerProcess, run: str, count: Count, *, period_s: float) -> None:
        super().__init__(daemon=True)
        self._sender = Sender(server, start_of(run))
        series = [module_series(number, "update.own", f"blocks.{number}") for number in range(SERIES)]
        self._sender.send(self._sender.declare(series))
        self._pool = urllib3.PoolManager(maxsize=1, retries=False, timeout=PATIENCE_S)
        self._count, self._period_s, self._ends = count, period_s, 0.0
        self._values = np.random.default_rng(0).uniform(0.9, 1.1, SERIES).astype("<f4").tolist()

    def begin(self, *, ends: float) -> None:
        """Send until then, by the monotonic clock."""
        self._ends = ends
        self.start()

    def run(self) -> None:
        """Send, every so often; what was sent away is sent again when the server says so."""
        steps = itertools.count(0, FRAMES)
        who = self._sender
        path = f"{who.api.address}/api/v1/runs/{who.run}/frames?attempt={who.start.attempt}&rank=0"
        due, body = time.monotonic(), b""
        while time.monotonic() < self._ends:
            first = next(steps)
            body = spool([self._sender.frame(first + place, self._values) for place in range(FRAMES)])
            while time.monotonic() < self._ends:
                wait_s = self._send(path, body)
                if wait_s is None:
                    break
                time.sleep(min(wait_s, max(0.0, self._ends - time.monotonic())))
            due += self._period_s
            time.sleep(max(0.0, min(due, self._ends) - time.monotonic()))

    def _send(self, path: str, body: bytes) -> float | None:
        """Seconds until it is to be sent again; None: it was taken."""
        try:
            answer = self._pool.request("POST", path, body=body, headers={"Content-Type": SPOOL_CONTENT_TYPE})
        except urllib3.exceptions.HTTPError:
            self._count.lost += 1
            return 1.0
        if answer.status == 200:
            if time.monotonic() < self._ends:
                self._count.taken += 1
                of_client = self._count.by_client
                of_client[self._sender.run] = of_client.get(self._sender.run, 0) + 1
            return None
        self._count.sent_away += 1
        return float(answer.headers.get("Retry-After", "1"))


def load(server: ServerProcess, prefix: str, clients: int, seconds: float, *, period_s: float) -> Count:
    """What comes of so many clients in so many seconds."""
    count = Count()
    threads = [Client(server, f"{prefix}{place}", count, period_s=period_s) for place in range(clients)]
    ends = time.monotonic() + seconds
    for thread in threads:
        thread._ends = ends  # all of them begin together, once each has introduced itself
        thread.start()
    health = urllib3.PoolManager(maxsize=1, retries=False, timeout=PATIENCE_S)
    while time.monotonic() < ends:
        began = time.perf_counter()
        health.request("GET", f"{server.address}/healthz")
        count.health_s.append(time.perf_counter() - began)
        time.sleep(0.25)
    for thread in threads:
        thread.join(PATIENCE_S)
    return count


def measure(database: str, directory: Path, *, seconds: float, times: float, clients: int) -> dict[str, Any]:
    """Capacity, and what is left of it."""
    with server_process(database, directory) as server:
        load(server, "warm", LEAST, seconds / 4, period_s=0.0)
        able = load(server, "able", LEAST, seconds, period_s=0.0)
        capacity = able.taken / seconds
        over = load(server, "over", clients, seconds, period_s=clients / (times * capacity))
        shares = sorted(over.by_client.get(f"over{place}", 0) for place in range(clients))
        return {
            "capacity": capacity,
            "goodput": over.taken / seconds,
            "share": over.taken / seconds / capacity,
            "sent_away": over.sent_away,
            "lost": over.lost,
            "clients_served": sum(share > 0 for share in shares),
            "clients": clients,
            "health_p50_ms": 1e3 * statistics.median(over.health_s),
            "health_most_ms": 1e3 * max(over.health_s),
        }


def main() -> int:
    """Measure, say it, and fail where too little is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--times", type=float, default=10.0, help="of the capacity that is asked for (default 10)")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        found = measure(
            str(directory / "a.db"), directory, seconds=options.seconds, times=options.times, clients=options.clients
        )
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.writelines(f"{name:<16} {value:.3g}\n" for name, value in found.items())
    return 0 if found["share"] >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
