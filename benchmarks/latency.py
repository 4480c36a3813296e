"""How long after a step a webhook knows that something was wrong in it.

    python -m benchmarks.latency [--json]

A small model trains under `internist.watch` against a real `internist serve` on SQLite, which has one webhook. Its loss
passes a threshold of the run's own, is told of, comes back, and is told of again. The clock runs from the end of the
step with the bad value to the arrival of the message about it: spool, sender, server, judge, commit and delivery.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import internist
from benchmarks.ingest import start_server

INCIDENTS = 40
WARM_INCIDENTS = 3
"""The first ones, whose server has yet to load things, are not counted."""
STEP_S = 0.005
"""A step takes so long at least: a loop without pause would take the server's core."""
BAR_S = 0.5
RULE = "threshold_loss"
DEADLINE_S = 60.0
_GOOD, _BAD, _LIMIT = 1.0, 9.0, 5.0


class Arrivals:
    """What a webhook has heard, and when."""

    def __init__(self) -> None:
        self._heard = threading.Condition()
        self._times: list[tuple[str, float]] = []

    def note(self, status: str) -> None:
        """Note that a message came."""
        with self._heard:
            self._times.append((status, time.perf_counter()))

    def count(self) -> int:
        """Number of messages so far."""
        with self._heard:
            return len(self._times)

    def newest(self) -> tuple[str, float]:
        """The last message: what it said, and when it came."""
        with self._heard:
            return self._times[-1]


def run() -> list[float]:
    """Seconds from the end of a bad step to the message about it, of each counted incident."""
    found: list[float] = []
    with tempfile.TemporaryDirectory(prefix="internist-bench-") as place, _webhook() as (url, arrivals):
        settings = {"INTERNIST_WEBHOOK_URL": url, "INTERNIST_RESOLVE_AFTER_S": "0"}
        server, address = start_server(Path(place), **settings)
        try:
            step = _Training(address, Path(place))
            for _ in range(WARM_INCIDENTS + INCIDENTS):
                found.append(_until_told(step, _BAD, arrivals, "firing"))
                _until_told(step, _GOOD, arrivals, "resolved")
            internist.finish()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)
    return found[WARM_INCIDENTS:]


class _Training:
    """A small model that trains, and logs the loss that it is told to."""

    def __init__(self, address: str, directory: Path) -> None:
        torch.manual_seed(0)
        self._model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._batch = torch.randn(64, 32)
        internist.watch(
            self._model, self._optimizer, every=1, server=address, directory=directory / "runs", mode="online",
            thresholds={"loss": _LIMIT}, max_overhead=0, project="benchmarks", name="latency",
        )  # fmt: skip

    def __call__(self, loss: float) -> float:
        """One step with this loss in its log; when it ended."""
        began = time.perf_counter()
        self._optimizer.zero_grad()
        self._model(self._batch).square().mean().backward()
        internist.log(loss=loss)
        self._optimizer.step()
        ended = time.perf_counter()
        time.sleep(max(0.0, STEP_S - (ended - began)))
        return ended


def _until_told(step: _Training, loss: float, arrivals: Arrivals, status: str) -> float:
    """Seconds from the first step with this loss to the next message, training going on."""
    before, began = arrivals.count(), step(loss)
    while arrivals.count() == before:
        if time.perf_counter() - began > DEADLINE_S:
            raise RuntimeError(f"no message came within {DEADLINE_S:g} s of a loss of {loss:g}")
        step(loss)
    said, at = arrivals.newest()
    if said != status:
        raise RuntimeError(f"expected a message that it is {status}, got {said}")
    return at - began


@contextmanager
def _webhook() -> Iterator[tuple[str, Arrivals]]:
    """A receiver on this machine: its address, and what it has heard."""
    arrivals = Arrivals()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["groupLabels"]["condition"] == RULE:  # the judge may have its own opinion of this model
                arrivals.note(body["status"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", arrivals
    finally:
        server.shutdown()
        server.server_close()


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, or one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line: name, value, unit")
    options = parser.parse_args(argv)
    seconds = sorted(run())
    found = [
        ("latency.p50", seconds[len(seconds) // 2], "s"),
        ("latency.p95", seconds[int(0.95 * len(seconds))], "s"),
        ("latency.largest", seconds[-1], "s"),
        ("latency.incidents", len(seconds), "incidents"),
        ("latency.bar", BAR_S, "s"),
    ]
    for name, value, unit in found:
        if options.json:
            print(json.dumps({"name": name, "value": value, "unit": unit}))
        else:
            print(f"{name:<28} {value:>14,.4g} {unit}")
    return 0 if found[1][1] <= BAR_S else 1


if __name__ == "__main__":
    sys.exit(main())
