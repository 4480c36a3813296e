"""Points a second that a real `internist serve` takes over HTTP, stored durably and judged.

    python -m benchmarks.ingest [--json]

One rank sends 1,000 frames of 1,000 series, 16 frames a request, to a server on SQLite with `synchronous=FULL`, on the
same cores. The series are those of a 20-block model, every condition is judged, and baselines are warm: the run has
4,000 steps behind it when the clock starts. Afterwards every point is read back and counted.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import urllib3

from internist.schema.metrics import METRICS
from internist.schema.wire import SPOOL_CONTENT_TYPE, VERSION, Facts, Frame, Plan, Record, RunStart, Series

SERIES = 1_000
FRAMES = 1_000
FRAMES_A_REQUEST = 16
EVERY = 10
WARM_FRAMES = 400
SEED = 7
NOISE = 0.05
"""Spread of the logarithm of each series from frame to frame: a calm run."""
RUN, ATTEMPT = "benchmark", "benchmark-1"
BAR = 300_000

_BLOCKS = 20
_LINEARS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
_OF_BLOCK = ("activation.rms", "activation.rms_q99", "activation.rms_max", "activation.spread", "activation.lipschitz",
             "update.feature", "block.contribution", "activation.nonfinite")  # fmt: skip
_OF_LINEAR = ("activation.rms", "activation.rms_max", "activation.nonfinite", "update.own")
_OF_WEIGHT = ("weight.operator_norm", "update.operator_norm")
_SQUARED = ("mean_square", "sum_square")


@dataclass(frozen=True)
class Measured:
    """What one run of the benchmark found."""

    seconds: float
    warm_seconds: float
    points: int
    read_back: int
    judged_steps: int

    @property
    def points_per_second(self) -> float:
        return self.points / self.seconds


def declare_series() -> tuple[Series, ...]:
    """Exactly `SERIES` series of a model of 20 blocks, in the mix that the catalogue measures of one."""
    found: list[Series] = []

    def add(metric: str, subject: str, **facts: Any) -> None:
        known = METRICS[metric]
        facts = Facts(order=len(found), cadence=EVERY, parameters=65_536, **facts)
        found.append(Series(len(found), metric, known.kind, subject, facts=facts))

    add("learning_rate", "group 0", group=0)
    for number in range(_BLOCKS):
        block = f"blocks.{number}"
        for metric in _OF_BLOCK:
            add(metric, block, role="block", block=block, module=block)
        for name in _LINEARS:
            module = f"{block}.{name}"
            for metric in _OF_LINEAR:
                add(metric, module, role="linear", block=block, module=module, input_normalized=True, group=0)
            for metric in _OF_WEIGHT:
                add(metric, f"{module}.weight", role="linear", block=block, module=module, group=0)
        for head in range(4):
            found.append(
                Series(
                    len(found),
                    "attention.max_logit",
                    "module",
                    f"{block}.attn",
                    head,
                    facts=Facts(role="attention", block=block, module=f"{block}.attn", order=len(found), cadence=EVERY),
                )
            )
    extra = 0
    while len(found) < SERIES:
        add("gradient.rms", f"blocks.{extra % _BLOCKS}.extra.{extra}.weight", block=f"blocks.{extra % _BLOCKS}")
        extra += 1
    return tuple(found[:SERIES])


def frames_of(
    series: Sequence[Series], *, first: int, count: int, rng: np.random.Generator
) -> Iterator[tuple[int, bytes]]:
    """Steps and values, as they travel on the wire, of a calm run."""
    level = np.exp(rng.normal(0.0, 1.0, len(series))) * 0.01
    metrics = [METRICS[one.metric] for one in series]
    squared = np.array([metric.combine in _SQUARED for metric in metrics])
    constant = np.array([metric.name in ("learning_rate", "activation.nonfinite") for metric in metrics])
    level[[metric.name == "learning_rate" for metric in metrics]] = 3e-4
    level[[metric.name == "activation.nonfinite" for metric in metrics]] = 0.0
    for number in range(first, first + count):
        values = level * np.where(constant, 1.0, np.exp(rng.normal(0.0, NOISE, len(series))))
        yield number * EVERY, np.where(squared, values**2, values).astype("<f4").tobytes()


def spool_record(record: Record) -> bytes:
    """A record as it lies in the spool."""
    body = msgspec.msgpack.encode(record)
    return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def start_server(directory: Path, **settings: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server process on a free port with these settings, and its address."""
    port_file = directory / "port"
    command = [sys.executable, "-m", "internist", "serve", "--port", "0", "--no-board"]
    command += ["--database", str(directory / "internist.db"), "--port-file", str(port_file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INTERNIST_")} | settings
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not port_file.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the server did not start")
        time.sleep(0.05)
    return server, f"http://127.0.0.1:{port_file.read_text()}"


def run() -> Measured:
    """Send, time, read back."""
    series = declare_series()
    rng = np.random.default_rng(SEED)
    frames = list(frames_of(series, first=0, count=WARM_FRAMES + FRAMES, rng=rng))
    with tempfile.TemporaryDirectory(prefix="internist-bench-") as place:
        server, address = start_server(Path(place))
        try:
            http = urllib3.PoolManager(maxsize=1, headers={"Connection": "keep-alive"})
            _register(http, address)
            head = spool_record(Record(0, series=series)) + spool_record(
                Record(1, plan=Plan(0, tuple(range(len(series)))))
            )
            warm_seconds = _send(http, address, frames[:WARM_FRAMES], head=head, sequence=2)
            seconds = _send(http, address, frames[WARM_FRAMES:], sequence=2 + WARM_FRAMES)
            first = frames[WARM_FRAMES][0]
            read_back, judged = _count(http, address, first=first, last=frames[-1][0])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)
    points = FRAMES * len(series)
    assert read_back == points, f"sent {points} points, read back {read_back}"
    assert judged == FRAMES, f"sent {FRAMES} steps, of which {judged} were judged"
    return Measured(seconds, warm_seconds, points, read_back, judged)


def _register(http: urllib3.PoolManager, address: str) -> None:
    start = RunStart(VERSION, RUN, ATTEMPT, 0, 1, "benchmarks", "ingest", EVERY, _now_ms(), parametrization="mup")
    body, headers = msgspec.msgpack.encode(start), {"Content-Type": "application/msgpack"}
    answer = http.request("POST", f"{address}/api/v1/runs", body=body, headers=headers)
    assert answer.status == 200, answer.data


def _send(
    http: urllib3.PoolManager, address: str, frames: Sequence[tuple[int, bytes]], *, sequence: int, head: bytes = b""
) -> float:
    """Seconds from the first byte to the last acknowledgement, records being encoded on the way."""
    url = f"{address}/api/v1/runs/{RUN}/frames?attempt={ATTEMPT}&rank=0"
    headers = {"Content-Type": SPOOL_CONTENT_TYPE}
    began = time.perf_counter()
    for begin in range(0, len(frames), FRAMES_A_REQUEST):
        slice_of = frames[begin : begin + FRAMES_A_REQUEST]
        body = head if begin == 0 else b""
        for offset, (step, values) in enumerate(slice_of):
            body += spool_record(Record(sequence + begin + offset, frame=Frame(0, step, _now_ms(), values)))
        answer = http.request("POST", url, body=body, headers=headers)
        reply = json.loads(answer.data)
        assert answer.status == 200, reply
        assert reply["acknowledged"] == sequence + begin + len(slice_of) - 1, reply
        assert not reply["refused"], reply
    return time.perf_counter() - began


def _count(http: urllib3.PoolManager, address: str, *, first: int, last: int) -> tuple[int, int]:
    """Points that the API gives back from a window, and the steps of it that were judged."""
    api = f"{address}/api/v1/runs/{RUN}"
    window = f"from_step={first}&to_step={last}&pixels=10000"
    page = _get(http, f"{api}/series?limit=1000")
    ids = [one["id"] for one in page["series"]]
    points = 0
    for begin in range(0, len(ids), 250):
        chosen = "&".join(f"series={one}" for one in ids[begin : begin + 250])
        points += sum(len(one["steps"]) for one in _get(http, f"{api}/points?{chosen}&{window}")["windows"])
    return points, len(_get(http, f"{api}/heatmap?metric=update.own&{window}")["steps"])


def _get(http: urllib3.PoolManager, url: str) -> Any:
    answer = http.request("GET", url)
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, or one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line: name, value, unit")
    options = parser.parse_args(argv)
    measured = run()
    found = [
        ("ingest.points_per_second", measured.points_per_second, "points/s"),
        ("ingest.points", measured.points, "points"),
        ("ingest.read_back", measured.read_back, "points"),
        ("ingest.judged_steps", measured.judged_steps, "steps"),
        ("ingest.seconds", measured.seconds, "s"),
        ("ingest.bar", BAR, "points/s"),
    ]
    for name, value, unit in found:
        if options.json:
            print(json.dumps({"name": name, "value": value, "unit": unit}))
        else:
            print(f"{name:<28} {value:>14,.6g} {unit}")
    return 0 if measured.points_per_second >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
