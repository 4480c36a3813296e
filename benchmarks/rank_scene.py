"""A run of four ranks as the board shows them: one is slow, one silent, and the replica of one went its own way."""

import math
import struct
import time
from collections.abc import Iterable

import httpx
import msgspec

from internist.schema.wire import (
    MSGPACK_CONTENT_TYPE,
    VERSION,
    Facts,
    Frame,
    FramesRequest,
    Heartbeat,
    Module,
    Plan,
    Record,
    RunStart,
    Series,
)
from tests.dashboard.feeder import EVERY

RUN, ATTEMPT, WORLD = "four-ranks", "four-ranks-a", 4
SLOW, SILENT, ODD = 1, 2, 3
STEPS = 400
SILENT_AT, ODD_AT = 300, 360
STEP_MS = 820.0
LAYERS = tuple(f"blocks.{block}.mlp" for block in range(8))

SERIES = (
    Series(0, "loss", "model", ""),
    Series(1, "gradient.global_norm", "model", "model"),
    Series(2, "weight.replicas_differ", "model", "model", facts=Facts(cadence=EVERY)),
    Series(3, "monitor.step_ms", "model", "model"),
    Series(4, "monitor.waited_ms", "model", "model"),
    *(
        Series(
            5 + order,
            "activation.rms",
            "module",
            name,
            facts=Facts(role="linear", block=name[:8], module=name, order=order, cadence=EVERY),
        )
        for order, name in enumerate(LAYERS)
    ),
)


def four_ranks(client: httpx.Client) -> str:
    """Make the run; the path of its page."""
    for rank in range(WORLD):
        outline = tuple(Module(name, "Linear", "linear", name[:8], 1_000) for name in LAYERS)
        body = RunStart(
            VERSION, RUN, ATTEMPT, rank, WORLD, "gpt-small", "four ranks", EVERY, _now_ms(), mesh={"dp": rank},
            modules=outline, optimizers=("AdamW",), client="tests",
        )  # fmt: skip
        _send(client, "/api/v1/runs", body)
        last = SILENT_AT if rank == SILENT else STEPS
        frames = (Frame(0, step, _now_ms(), _values(rank, step)) for step in range(0, last + 1, EVERY))
        declared = Record(0, series=SERIES), Record(1, plan=Plan(0, tuple(range(len(SERIES)))))
        told = (Record(2 + place, frame=frame) for place, frame in enumerate(frames))
        _send(client, f"/api/v1/runs/{RUN}/frames", FramesRequest(VERSION, ATTEMPT, rank, (*declared, *told)))
        _send(client, f"/api/v1/runs/{RUN}/heartbeat", Heartbeat(ATTEMPT, rank, last, step_age_ms=100))
    return f"/runs/{RUN}"


def stay_alive(client: httpx.Client) -> None:
    """A sign of life of all ranks but the silent one. What it is silent for shows after a minute."""
    for rank in (rank for rank in range(WORLD) if rank != SILENT):
        _send(client, f"/api/v1/runs/{RUN}/heartbeat", Heartbeat(ATTEMPT, rank, STEPS, step_age_ms=100))


def _values(rank: int, step: int) -> bytes:
    def numbers() -> Iterable[float]:
        yield 2.1 + 2.4 * math.exp(-step / 140) + 0.01 * math.sin(step + rank)
        yield (0.4 + 0.01 * math.sin(step / 9 + rank)) ** 2
        yield float(step + (rank == ODD and step >= ODD_AT))
        yield STEP_MS + rank
        yield 6.0 if rank == SLOW else 390.0 + 4 * rank  # who is waited for waits the least
        yield from (0.9 + 0.05 * math.sin(0.7 * order + step / 37) for order in range(len(LAYERS)))

    values = list(numbers())
    return struct.pack(f"<{len(values)}f", *values)


def _send(client: httpx.Client, path: str, body: object) -> None:
    headers = {"Content-Type": MSGPACK_CONTENT_TYPE}
    client.post(path, content=msgspec.msgpack.encode(body), headers=headers).raise_for_status()


def _now_ms() -> int:
    return int(time.time() * 1000)
