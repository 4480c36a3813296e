"""Runs of many ranks: what one of them costs does not hang on how many others there are."""

import struct
from functools import partial

import pytest
from sqlalchemy import event

from benchmarks.ranks import ATTEMPT, RUN, ManyRanks
from internist_server.changes import Changes
from internist_server.ingest import Ingest
from internist_server.known import KnownRuns
from internist_server.store import attempts
from internist_server.store.frames import recent_times

FEW, MANY = 3, 24


def values(number):
    return struct.pack("<3f", number, number, number)


def runs(path, *, ranks):
    return ManyRanks(f"sqlite:///{path / 'ranks.sqlite'}", ranks=ranks, series=3)


@pytest.fixture
def pair(tmp_path):
    run = runs(tmp_path, ranks=2)
    for rank in range(2):
        run.join(rank)
    yield run
    run.database.close()


def test_a_heartbeat_and_a_part_cost_the_same_however_many_ranks_there_are(tmp_path):
    run = runs(tmp_path, ranks=MANY)

    def work_of_rank_0(place):
        run.say_alive(0, 10 * place)
        run.send(0, place, 10 * place, values(place))  # what is asked for once is known now
        heartbeat = run.work.of(partial(run.say_alive, 0, 10 * place + 1))
        return heartbeat, run.work.of(partial(run.send, 0, place + 1, 10 * place + 10, values(place)))

    for rank in range(FEW):
        run.join(rank)
    of_few = work_of_rank_0(0)
    for rank in range(FEW, MANY):
        run.join(rank)
        run.send(rank, 0, 0, values(0))
        run.say_alive(rank, 10)

    of_many = work_of_rank_0(2)

    run.database.close()
    for (few, few_steps), (many, many_steps) in zip(of_few, of_many, strict=True):
        assert many <= few
        assert many_steps <= few_steps + 1, "SQLite has gone through rows of other ranks"


def test_ranks_whose_requests_two_servers_take_are_judged_together(pair):
    other = Ingest(pair.database, Changes(), max_series=100, clock=lambda: pair.now_ms)
    first = pair.ingest

    for step, servers in ((0, (first, other)), (10, (other, first)), (20, (other, other))):
        for rank, pair.ingest in enumerate(servers):
            pair.send(rank, step // 10, step, values(step))
        assert pair.judged_step() == step


def test_what_was_undone_is_not_remembered(pair):
    engine, ills = pair.database.engine, ["UPDATE standings"]
    pair.send(0, 0, 0, values(0))

    def fail_once(_connection, _cursor, statement, *_):
        if ills and statement.startswith(ills[0]):
            raise RuntimeError(ills.pop())

    event.listen(engine, "before_cursor_execute", fail_once)
    with pytest.raises(RuntimeError, match="UPDATE standings"):
        pair.send(1, 0, 0, values(0))
    pair.send(0, 1, 10, values(1))
    assert pair.judged_step() == -1, "rank 1 is waited for, of whom nothing is stored"
    pair.send(1, 0, 0, values(0))

    assert pair.judged_step() == 0


def test_what_is_known_in_memory_is_bounded_and_the_newest_stays(pair):
    runs = KnownRuns(max_ranks=1)

    with pair.database.write() as session:
        cursor = attempts.lock_run(session, RUN)
        found = runs.look(RUN, cursor)
        assert len(found.find(session, RUN, ATTEMPT).roster) == 2
        assert runs.look(RUN, cursor) is found
        runs.look("another", 0)
        assert runs.look(RUN, cursor) is not found, "the other one is newer"
        assert runs.look(RUN, cursor + 1).ranks == 0, "something has changed"


def test_the_time_of_a_step_is_known_however_many_ranks_measure_it(pair):
    for place, step in enumerate((0, 10, 20)):
        for rank in range(2):
            pair.send(rank, place, step, values(step))

    with pair.database.read() as session:
        attempt = attempts.find_attempt(session, RUN, ATTEMPT)
        assert [step for step, _ in recent_times(session, attempt.id, up_to=20, limit=2)] == [20, 10]
