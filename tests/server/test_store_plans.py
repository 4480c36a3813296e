"""What a live frame asks of the database does not grow with the run: each statement seeks what it needs by index."""

import struct

import pytest
import sqlalchemy
from sqlalchemy import Engine, event

from internist.schema.wire import Frame, Plan, Record
from internist_server.changes import Changes
from internist_server.envelope import Contents
from internist_server.ingest import Ingest
from internist_server.store.database import Database
from tests.server.sending import EPOCH_MS, Sender, module_series, start_of

SERIES = [module_series(n, "activation.rms_max", f"blocks.{n}") for n in range(3)]
GROWING = ("frames", "judgements", "bands")
"""Tables of which an attempt has a row a step."""


@pytest.fixture
def statements():
    """Statements on SQLite, with their parameters, as they are executed."""
    seen = []

    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append((statement, parameters[0] if executemany else parameters))

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


def plans_of(url, statements):
    """The lines of SQLite's plans that read one of the tables that grow."""
    engine = sqlalchemy.create_engine(url)
    found = []
    with engine.connect() as connection:
        for statement, parameters in statements:
            if statement.split()[0] in ("SELECT", "UPDATE", "DELETE"):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                found += [(row.detail, statement) for row in rows if row.detail.split()[1] in GROWING]
    engine.dispose()
    return found


def test_a_live_frame_of_the_only_rank_reads_nothing_that_grows(sqlite_url, statements):
    database = Database(sqlite_url)
    ingest = Ingest(
        database, Changes(), max_series=100, clock=lambda: EPOCH_MS
    )  # no thread that has its own statements
    start, plan = start_of(), Plan(0, (0, 1, 2))
    ingest.start(start)

    def take(first, *contents):
        records = tuple(Record(first + place, **content) for place, content in enumerate(contents))
        assert not ingest.take(start.run, Contents(start.attempt, 0, records, ())).refused

    frames = [{"frame": Frame(0, step, EPOCH_MS, struct.pack("<3f", 1.0, 1.0, 1.0))} for step in range(0, 220, 10)]
    take(0, {"series": tuple(SERIES)}, {"plan": plan}, *frames[:20])
    take(22, frames[20])
    statements.clear()

    take(23, frames[21])

    assert plans_of(sqlite_url, statements) == []
    database.close()


def test_a_live_frame_of_two_ranks_seeks_what_grows_by_step(sqlite_url, serve, statements):
    api = serve(sqlite_url)
    ranks = [Sender(api, start_of(rank=rank, world_size=2)) for rank in range(2)]
    for sender in ranks:
        sender.send([*sender.declare(SERIES), *(sender.frame(step, [1.0] * 3) for step in range(0, 200, 10))])
        sender.beat(190)
    statements.clear()

    for sender in ranks:
        sender.send([sender.frame(200, [1.0] * 3)])
        sender.beat(200)

    found = plans_of(sqlite_url, statements)
    assert found
    for detail, statement in found:
        is_sought = any(f"attempt_id=? AND {by}" in detail for by in ("step", "rank=?"))  # of one rank few are loose
        assert detail.startswith("SEARCH") and is_sought, f"{detail}: {statement}"
