"""What a stranger may send, at random from a seed: mutated records, torn slices, and requests made up from the API's
own description. `make fuzz` runs this file for ten minutes; the tests take a short share of it."""

import argparse
import logging
import os
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from starlette.testclient import TestClient

from internist.schema.wire import (
    MSGPACK_CONTENT_TYPE,
    SPOOL_CONTENT_TYPE,
    CoverageEntry,
    Finish,
    Frame,
    Heartbeat,
    Module,
    Note,
    Outline,
    Plan,
    Route,
    Series,
)
from internist_migrations.upgrade import upgrade
from internist_server.app import create_api
from internist_server.settings import Settings
from tests.server.sending import EPOCH_MS, framed, module_series, start_of

ODD: Final[tuple[Any, ...]] = (
    None, -1, 0, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1, 1e308, float("nan"), float("-inf"), "",
    "\0", "\x1b[2J", "nan", "x" * 700, "..", "\U0010ffff", b"", b"\0" * 9, [], {}, True, [[[[]]]], {"\0": 1},
)  # fmt: skip
MAX_GROWTH: Final = 256 << 20
"""Bytes that a process may grow by while it is fuzzed: what caches hold, and no more with every request."""


def mutated(value: Any, numbers: random.Random) -> Any:
    """A copy of plain data with one entry somewhere replaced by something else, taken out, or doubled."""
    if isinstance(value, dict) and value and numbers.random() < 0.9:
        key = numbers.choice(sorted(value))
        if numbers.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: mutated(value[key], numbers)}
    if isinstance(value, list | tuple) and value and numbers.random() < 0.8:
        place = numbers.randrange(len(value))
        if numbers.random() < 0.1:
            return [*value, *value]
        return [*value[:place], mutated(value[place], numbers), *value[place + 1 :]]
    return numbers.choice(ODD)


def torn(body: bytes, numbers: random.Random) -> bytes:
    """A body with bytes changed, cut, doubled, or put in."""
    at = numbers.randrange(len(body) + 1)
    kind = numbers.randrange(4)
    if kind == 0:
        return body[:at]
    if kind == 1:
        return body[:at] + numbers.randbytes(numbers.randrange(1, 40)) + body[at:]
    if kind == 2:
        return body + body[at:]
    return body[:at] + bytes([numbers.randrange(256)]) + body[at + 1 :]


def records() -> list[dict[str, Any]]:
    """One record of each kind, as plain data."""
    two = (module_series(0, "activation.rms_max", "blocks.0"), module_series(1, "activation.abs_max", "blocks.0"))
    kinds: list[dict[str, Any]] = [
        {"series": two},
        {"series": (Series(2, "loss", "model", ""),)},
        {"plan": Plan(0, (0, 1), (1, 1))},
        {"frame": Frame(0, 5, EPOCH_MS, b"\0" * 8)},
        {"coverage": (CoverageEntry("module", "m", "measured"),)},
        {"note": Note("t", "x", "info", 1, EPOCH_MS)},
        {"finish": Finish(1, EPOCH_MS)},
        {"outline": Outline({"lr": 0.1}, (Module("m", "Linear", "linear"),), (Route("w", "Adam", "adam", "0"),))},
        {"start": start_of()},
    ]
    return [msgspec.msgpack.decode(msgspec.msgpack.encode(one)) for one in kinds]


def requests(numbers: random.Random) -> Iterator[tuple[str, bytes, str]]:
    """Paths, bodies and content types without end: slices, requests, starts and heartbeats that went wrong."""
    plain, start = records(), msgspec.msgpack.decode(msgspec.msgpack.encode(start_of()))
    beat = msgspec.msgpack.decode(msgspec.msgpack.encode(Heartbeat("run1-a", 0, 1, 1)))
    frames = "/api/v1/runs/run1/frames?attempt=run1-a&rank=0"
    sequence = 0
    while True:
        several = []
        for _ in range(numbers.randrange(1, 5)):
            sequence += 1
            record = {"sequence": sequence, **numbers.choice(plain)}
            several.append(mutated(record, numbers) if numbers.random() < 0.7 else record)
        kind = numbers.randrange(6)
        if kind == 0:
            yield "/api/v1/runs", msgspec.json.encode(_without_bytes(mutated(start, numbers))), "application/json"
        elif kind == 1:
            body = msgspec.msgpack.encode(mutated(beat, numbers))
            yield "/api/v1/runs/run1/heartbeat", body, MSGPACK_CONTENT_TYPE
        elif kind == 2:
            body = msgspec.msgpack.encode(
                mutated({"version": 1, "attempt": "run1-a", "rank": 0, "records": several}, numbers)
            )
            yield frames, body, MSGPACK_CONTENT_TYPE
        elif kind == 3:
            yield (
                frames,
                torn(b"".join(framed(msgspec.msgpack.encode(one)) for one in several), numbers),
                SPOOL_CONTENT_TYPE,
            )
        elif kind == 4:
            broken = [torn(msgspec.msgpack.encode(one), numbers) for one in several]
            lengths = [struct.pack("<II", len(one), zlib.crc32(one)) for one in broken]
            yield frames, b"".join(map(b"".join, zip(lengths, broken, strict=True))), SPOOL_CONTENT_TYPE
        else:
            yield frames, b"".join(framed(msgspec.msgpack.encode(one)) for one in several), SPOOL_CONTENT_TYPE


def _without_bytes(value: Any) -> Any:
    """JSON has none."""
    if isinstance(value, dict):
        return {name: _without_bytes(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_bytes(one) for one in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def fuzz_intake(api: TestClient, numbers: random.Random, *, most: int, until: float = float("inf")) -> int:
    """Send what went wrong; how many requests it were.

    Raises:
        AssertionError: the server failed at one, or a good run's board cannot be read any more.
    """
    api.post("/api/v1/runs", content=msgspec.msgpack.encode(start_of()), headers={"Content-Type": MSGPACK_CONTENT_TYPE})
    sent = 0
    for path, body, kind in requests(numbers):
        if sent >= most or time.monotonic() > until:
            break
        answer = api.post(path, content=body, headers={"Content-Type": kind})
        assert answer.status_code < 500, (path, kind, body, answer.text)
        sent += 1
        if sent % 50 == 0:
            for view in (
                "",
                "/verdicts",
                "/series",
                "/coverage",
                "/points?metric=loss",
                "/heatmap",
                "/routing",
                "/ranks",
            ):
                seen = api.get(f"/api/v1/runs/run1{view}")
                assert seen.status_code < 500, (view, seen.text)
    return sent


def fuzz_api(url: str, *, examples: int, start: int) -> None:
    """Ask each documented operation what its own description allows, and some that it does not.

    Raises:
        AssertionError: the server failed at one.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_api(Settings(database_url=url)))
    limits = settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/stream"):
            continue  # it does not end

        @seed(start)
        @limits
        @given(case=operation.as_strategy())
        def answers(case: Any) -> None:
            answer = case.call()
            assert answer.status_code < 500, (case.method, case.path, answer.text)

        answers()


@contextmanager
def database(place: str | None) -> Iterator[str]:
    """A migrated database: the one that is named, or a SQLite file of its own."""
    with tempfile.TemporaryDirectory(prefix="internist-fuzz-") as directory:
        url = place or f"sqlite:///{Path(directory) / 'fuzz.db'}"
        upgrade(url)
        yield url


def main(arguments: list[str]) -> int:
    """Fuzz for a while, and say what came of it."""
    parser = argparse.ArgumentParser(description="Fuzz the server's API, decoder and intake.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: 600)")
    parser.add_argument("--seed", type=int, default=None, help="where to begin (default: another every time)")
    parser.add_argument("--database", default=None, help="an empty database (default: a SQLite file of its own)")
    options = parser.parse_args(arguments)
    logging.getLogger("internist_server").setLevel(logging.ERROR)
    begin = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"fuzzing for {options.seconds:g} s from seed {begin}", flush=True)
    deadline, sent, grown = time.monotonic() + options.seconds, 0, 0
    with database(options.database) as url:
        for turn in range(1 << 30):
            before = _peak()
            with TestClient(create_api(Settings(database_url=url))) as api:
                sent += fuzz_intake(api, random.Random(begin + turn), most=300, until=deadline)
            if time.monotonic() < deadline:
                fuzz_api(url, examples=10, start=begin + turn)
            if turn > 0:  # the first fills what a process keeps
                grown = max(grown, _peak() - before)
            if time.monotonic() >= deadline:
                break
    print(f"{sent} requests and {turn + 1} rounds of the API: no answer of 500 or above; grew by {grown >> 20} MiB")
    return 0 if grown < MAX_GROWTH else 1


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
