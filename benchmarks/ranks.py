"""What one run of very many ranks costs a server, and its ranks' network: 512 ranks of 1,000 series each.

    python -m benchmarks.ranks [--ranks 512] [--series 1000] [--steps 6] [--quick] [--json]

In process: the bytes that a client would send are read, stored, merged and judged as a request's are, without HTTP
around them, on SQLite. Every rank sends its part of every step, one frame a request, as live ranks do; a step is judged
when the last rank's part of it is there. CPU is that of this process; the ranks themselves are not trained. Statements
and rows do not depend on what else the machine does: rows are those that are fetched, steps those of SQLite's machine,
by which it goes through rows that nobody is given.
"""

import argparse
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import event

from benchmarks.ingest import EVERY, SERIES, declare_series, frames_of, spool_record
from benchmarks.store import EPOCH_MS, STEP_MS, Figure, database_urls, size_of, timed
from internist.schema.wire import SPOOL_CONTENT_TYPE, VERSION, Frame, Heartbeat, Plan, Record, RunStart
from internist_migrations.upgrade import upgrade
from internist_server.changes import Changes
from internist_server.envelope import open_contents
from internist_server.ingest import Ingest
from internist_server.store import attempts, windows
from internist_server.store.database import Database
from internist_server.store.judgements import load_judged_step

RUN, ATTEMPT = "benchmark", "benchmark-1"
SEED = 7
TOKENS = 8_192
"""What each rank's values stand for."""


class Work:
    """What a database has been asked to do so far."""

    def __init__(self, database: Database) -> None:
        self.statements = 0
        self.kilosteps = 0
        """Thousand steps of SQLite's virtual machine."""
        event.listen(database.engine, "after_cursor_execute", self._count)
        event.listen(database.engine, "connect", self._listen)

    def of(self, what: Callable[[], object]) -> tuple[int, int]:
        """The statements and kilosteps that a call takes."""
        before = self.statements, self.kilosteps
        what()
        return self.statements - before[0], self.kilosteps - before[1]

    def _count(self, *_: object) -> None:
        self.statements += 1

    def _listen(self, connection: Any, _: object) -> None:
        connection.set_progress_handler(self._step, 1_000)

    def _step(self) -> int:
        self.kilosteps += 1
        return 0


class ManyRanks:
    """A run whose ranks send to one ingest, each the bytes that its client would."""

    def __init__(self, url: str, *, ranks: int, series: int) -> None:
        upgrade(url)
        self.now_ms = EPOCH_MS
        self.ranks, self.series = ranks, declare_series()[:series]
        self.database = Database(url)
        self.ingest = Ingest(self.database, Changes(), max_series=100_000, clock=lambda: self.now_ms)
        self.work = Work(self.database)

    def join(self, rank: int) -> int:
        """Register a rank and declare its series; bytes sent."""
        start = RunStart(
            VERSION, RUN, ATTEMPT, rank, self.ranks, "benchmarks", "ranks", EVERY, EPOCH_MS, parametrization="mup"
        )
        self.ingest.start(start)
        numbers = tuple(range(len(self.series)))
        declared = Record(0, series=self.series), Record(1, plan=Plan(0, numbers, (TOKENS,) * len(numbers)))
        return len(msgspec.msgpack.encode(start)) + self._send(rank, declared)

    def send(self, rank: int, place: int, step: int, values: bytes) -> int:
        """A rank's part of a step; bytes sent."""
        self.now_ms = EPOCH_MS + step * STEP_MS
        return self._send(rank, [Record(2 + place, frame=Frame(0, step, self.now_ms, values))])

    def say_alive(self, rank: int, step: int) -> None:
        """A rank's heartbeat."""
        self.ingest.heartbeat(RUN, Heartbeat(ATTEMPT, rank, step, 100))

    def read_series(self) -> None:
        """One series of the whole run, merged over all ranks, as a chart asks for it."""
        with self.database.read() as session:
            attempt = attempts.choose_attempt(session, RUN, None)
            chosen = windows.choose_series(session, attempt, metrics=["activation.rms"], subject=r"^blocks\.0$")
            found = windows.read_points(session, attempt, chosen, pixels=1_000)
        assert found, "no points were read back"

    def judged_step(self) -> int:
        """The last step that was judged."""
        with self.database.read() as session:
            return load_judged_step(session, attempts.choose_attempt(session, RUN, None).id)

    def _send(self, rank: int, records: Sequence[Record]) -> int:
        body = b"".join(map(spool_record, records))
        reply = self.ingest.take(RUN, open_contents(body, SPOOL_CONTENT_TYPE, attempt=ATTEMPT, rank=rank))
        assert reply.stored == len(records) and not reply.refused, reply
        return len(body)


def measure(url: str, *, ranks: int, series: int, steps: int) -> Iterator[Figure]:
    """All figures of a run of so many ranks and steps.

    Raises:
        AssertionError: a part was not stored, or a step that all ranks have sent was not judged.
    """
    run = ManyRanks(url, ranks=ranks, series=series)
    yield Figure("join of a rank, sent", run.join(0), "B")
    joins = [timed(partial(run.join, rank))[0] for rank in range(1, ranks)]
    yield Figure("join of a rank, CPU", 1e3 * median(joins), "ms")
    rng = np.random.default_rng(SEED)
    parts: list[float] = []
    completing: list[float] = []
    totals: list[float] = []
    sent: list[int] = []

    def send(rank: int, place: int, frame: tuple[int, bytes]) -> None:
        sent.append(run.send(rank, place, *frame))

    step = 0
    for place, frame in enumerate(frames_of(run.series, first=0, count=steps, rng=rng)):
        step = frame[0]
        took = [timed(partial(send, rank, place, frame))[0] for rank in range(ranks)]
        parts += took[:-1]
        completing.append(took[-1])
        totals.append(sum(took))
        assert run.judged_step() == step, f"step {step} was sent by all ranks and is not judged"
    yield Figure("a rank's part of a step, sent", max(sent), "B")
    yield Figure("a rank's part of a step, CPU", 1e3 * median(parts), "ms")
    yield Figure("the part that completes a step, CPU", 1e3 * median(completing), "ms")
    yield Figure("a step of all ranks, CPU", median(totals), "s")
    said = [timed(partial(run.say_alive, rank, step))[0] for rank in range(ranks)]
    yield Figure("a heartbeat, CPU", 1e3 * median(said), "ms")
    asked = [run.work.of(partial(run.say_alive, rank, step)) for rank in range(ranks)]
    yield Figure("a heartbeat, statements", median(one for one, _ in asked), "")
    yield Figure("a heartbeat, steps of SQLite", sum(steps for _, steps in asked) / ranks, "thousand")
    yield Figure("one series over all ranks, CPU", 1e3 * min(timed(run.read_series)[0] for _ in range(3)), "ms")
    yield Figure("bytes a point and rank on disk", size_of(run.database) / (len(sent) * series), "B")
    yield Figure("largest memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")
    run.database.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Print each figure as it is known, as a line or as one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--series", type=int, default=1_000, help="of each rank, at most 1,000")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="8 ranks of 100 series, two steps")
    parser.add_argument("--json", action="store_true", help="one object a line: name, value, unit")
    options = parser.parse_args(argv)
    if options.quick:
        options.ranks, options.series, options.steps = 8, 100, 2
    if min(options.ranks, options.steps) < 2 or not 1 <= options.series <= SERIES:
        parser.error(f"expected two ranks and steps or more, and 1 to {SERIES} series")
    print(f"load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    with database_urls(is_postgres=False) as make:
        for figure in measure(make("ranks"), ranks=options.ranks, series=options.series, steps=options.steps):
            shown = json.dumps({"name": figure.name, "value": figure.value, "unit": figure.unit})
            print(shown if options.json else f"{figure.name:<56} {figure.value:>12,.4g} {figure.unit}", flush=True)
    print(f"load: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
