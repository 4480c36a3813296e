"""A client as the tests need one: it declares series, numbers its records and sends frames."""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from internist.schema.wire import (
    SENT_AT_HEADER,
    SPOOL_CONTENT_TYPE,
    VERSION,
    Facts,
    Finish,
    Frame,
    FramesRequest,
    Heartbeat,
    Plan,
    Record,
    RunStart,
    Series,
)

EPOCH_MS = 1_790_000_000_000
STEP_MS = 100


def start_of(run: str = "run1", **changes: Any) -> RunStart:
    """A start with plain answers to everything."""
    plain = RunStart(
        version=VERSION,
        run=run,
        attempt=f"{run}-a",
        rank=0,
        world_size=1,
        project="tests",
        name="a run",
        every=10,
        started_at_ms=EPOCH_MS,
    )
    return replace(plain, **changes)


def module_series(number: int, metric: str, subject: str, *, index: int | None = None, **facts: Any) -> Series:
    """A series of a module in block `blocks.N`, if its name begins so."""
    parts = subject.split(".")
    block = ".".join(parts[:2]) if parts[0] == "blocks" else None
    return Series(number, metric, "module", subject, index, facts=Facts(block=block, module=subject, **facts))


def spool(records: Sequence[Record]) -> bytes:
    """Records as they lie in a spool."""
    return b"".join(framed(msgspec.msgpack.encode(record)) for record in records)


def framed(body: bytes) -> bytes:
    """One record's bytes with length and checksum before them."""
    return struct.pack("<II", len(body), zlib.crc32(body)) + body


class Sender:
    """One rank of one attempt, speaking to the API through a test client."""

    def __init__(
        self,
        api: Any,
        start: RunStart | None = None,
        *,
        register: bool = True,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.api = api
        self.clock = clock
        self.start = start or start_of()
        self.run = self.start.run
        self.sequence = 0
        self.plans = 0
        self.steps_ms = EPOCH_MS
        if register:
            answer = self.post_start()
            assert answer.status_code == 200, answer.text

    def post_start(self) -> Any:
        return self.api.post(
            "/api/v1/runs",
            content=msgspec.msgpack.encode(self.start),
            headers=self.headers("application/msgpack"),
        )

    def headers(self, content_type: str) -> dict[str, str]:
        """Of a request; where the sender has a clock, with what it says."""
        sent = {} if self.clock is None else {SENT_AT_HEADER: str(self.clock())}
        return {"Content-Type": content_type, **sent}

    def record(self, **content: Any) -> Record:
        record = Record(self.sequence, **content)
        self.sequence += 1
        return record

    def declare(self, series: Sequence[Series], *, counts: Sequence[int] = ()) -> list[Record]:
        """Records that declare series and a plan of all of them."""
        plan = Plan(self.plans, tuple(one.number for one in series), tuple(counts))
        self.plans += 1
        return [self.record(series=tuple(series)), self.record(plan=plan)]

    def frame(
        self,
        step: int,
        values: Sequence[float],
        *,
        plan: int = 0,
        at_ms: int | None = None,
        skipped: bool = False,
        continued: bool = False,
    ) -> Record:
        blob = np.asarray(values, dtype="<f4").tobytes()
        moment = EPOCH_MS + step * STEP_MS if at_ms is None else at_ms
        return self.record(frame=Frame(plan, step, moment, blob, skipped, continued))

    def finish(self, step: int, outcome: Any = "finished") -> Record:
        return self.record(finish=Finish(step, EPOCH_MS + step * STEP_MS, outcome))

    def post(self, records: Sequence[Record], *, content: bytes | None = None) -> Any:
        """Send records as a spool slice."""
        return self.api.post(
            f"/api/v1/runs/{self.run}/frames",
            params={"attempt": self.start.attempt, "rank": self.start.rank},
            content=spool(records) if content is None else content,
            headers=self.headers(SPOOL_CONTENT_TYPE),
        )

    def send(self, records: Sequence[Record]) -> dict[str, Any]:
        """Send records; all must be taken."""
        answer = self.post(records)
        assert answer.status_code == 200, answer.text
        reply: dict[str, Any] = answer.json()
        assert not reply["refused"], reply
        return reply

    def request(self, records: Sequence[Record], *, version: int = VERSION) -> FramesRequest:
        return FramesRequest(version, self.start.attempt, self.start.rank, tuple(records))

    def beat(self, step: int, *, step_age_ms: int = 0, powers: tuple[int, ...] = ()) -> dict[str, Any]:
        beat = Heartbeat(self.start.attempt, self.start.rank, step, step_age_ms, powers=powers)
        answer = self.api.post(
            f"/api/v1/runs/{self.run}/heartbeat",
            content=msgspec.msgpack.encode(beat),
            headers=self.headers("application/msgpack"),
        )
        assert answer.status_code == 200, answer.text
        reply: dict[str, Any] = answer.json()
        return reply

    def get(self, path: str = "", **params: Any) -> Any:
        """A view of this run."""
        answer = self.api.get(f"/api/v1/runs/{self.run}{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def points(self, metric: str, **params: Any) -> Mapping[int, Any]:
        """Values by step of the first series of a metric."""
        window = self.get("/points", metric=metric, **params)["windows"][0]
        return dict(zip(window["steps"], window["values"], strict=True))
