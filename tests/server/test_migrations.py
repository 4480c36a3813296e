import subprocess
import sys

import sqlalchemy

from internist_migrations.upgrade import downgrade, drift, is_current, upgrade
from internist_server.store.database import make_engine
from internist_server.store.metadata import METADATA

KILLED_EVERY = 12
LEAST_KILLED = 4
"""Statements between two kills, and how many kills there must be at least: there are over fifty from 0007 on."""


def tables(engine):
    return set(sqlalchemy.inspect(engine).get_table_names()) - {"alembic_version"}


def test_migrations_go_up_and_down_and_up_again(empty_database_url):
    engine = make_engine(empty_database_url)
    assert not is_current(engine)

    upgrade(empty_database_url)
    assert is_current(engine)
    assert tables(engine) == set(METADATA.tables)
    downgrade(empty_database_url, "base")
    assert tables(engine) == set()
    upgrade(empty_database_url)
    upgrade(empty_database_url)

    assert is_current(engine)
    engine.dispose()


def test_what_a_judge_knew_and_how_far_plans_were_survive_the_way_up_and_down(empty_database_url):
    upgrade(empty_database_url, "0007")
    engine = make_engine(empty_database_url)
    _fill_run(engine)

    upgrade(empty_database_url)
    _require_run(engine)

    downgrade(empty_database_url, "0007")
    state = _row(engine, "judge_states")
    assert (state["judged_step"], state["order"], state["state"]) == (30, b"o", b"known")
    assert (_row(engine, "plans")["last_step"], _row(engine, "runs")["cursor"]) == (30, 41)
    assert (_row(engine, "frames")["values"], _row(engine, "ranks")["delivered"]) == (b"v", [[0, 3]])
    engine.dispose()


def _fill_run(engine):
    """A run with a frame and a judge's state, as revision 0007 has them."""
    _fill(
        engine,
        runs={"id": "r", "project": "p", "name": "n", "created_at_ms": 1, "config": {"lr": 1}, "parametrization": "mup",
              "optimizers": [], "cursor": 41},
        attempts={"id": 7, "run_id": "r", "name": "a", "number": 1, "world_size": 1, "every": 10, "started_at_ms": 1,
                  "received_at_ms": 1, "start_step": 0, "client": "c", "modules": []},
        ranks={"attempt_id": 7, "rank": 0, "mesh": {}, "delivered": [[0, 3]], "last_step": 30, "sampled_step": 30,
               "received_at_ms": 1, "refused": 0},
        plans={"attempt_id": 7, "rank": 0, "number": 5, "is_sampled": True, "last_step": 30, "series": b"s"},
        frames={"attempt_id": 7, "rank": 0, "sequence": 2, "step": 30, "plan": 5, "measured_at_ms": 1,
                "received_at_ms": 1, "skipped": False, "late": False, "values": b"v"},
        judge_states={"attempt_id": 7, "version": 3, "judged_step": 30, "order": b"o", "state": b"known",
                      "summary": {}},
    )  # fmt: skip


def _require_run(engine):
    """What became of it in the newest revision."""
    assert _row(engine, "judge_checkpoints") == {"attempt_id": 7, "step": 30, "order": b"o", "state": b"known"}
    assert _row(engine, "judge_states")["judged_step"] == 30
    rank, standing = _row(engine, "ranks"), _row(engine, "standings")
    assert (rank["plan_steps"], rank["loose"], rank["last_step"]) == ({"5": 30}, 1, 30)
    assert (standing["run_id"], standing["cursor"], standing["next_check_ms"]) == ("r", 41, 0)


def _fill(engine, **rows):
    """One row in each of these tables, in this order, as they are in the database now."""
    found = sqlalchemy.MetaData()
    found.reflect(engine)
    with engine.begin() as connection:
        for name, row in rows.items():
            connection.execute(found.tables[name].insert(), row)


def _row(engine, name):
    found = sqlalchemy.Table(name, sqlalchemy.MetaData(), autoload_with=engine)
    with engine.connect() as connection:
        row = dict(connection.execute(sqlalchemy.select(found)).one()._mapping)
    return {key: bytes(value) if isinstance(value, memoryview) else value for key, value in row.items()}


def test_a_migration_that_is_killed_has_done_nothing_and_is_begun_again(empty_database_url):
    upgrade(empty_database_url, "0007")
    engine = make_engine(empty_database_url)
    _fill_run(engine)
    engine.dispose()

    command = [sys.executable, "-m", "tests.server.killed_migrations", empty_database_url, str(KILLED_EVERY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= LEAST_KILLED
    assert is_current(engine) and drift(engine) == []
    _require_run(engine)
    engine.dispose()


def test_a_migrated_database_has_the_form_of_the_tables(database_url):
    engine = make_engine(database_url)

    assert drift(engine) == []
    engine.dispose()


def test_every_constraint_has_a_name_of_its_own():
    names = [
        str(constraint.name)
        for table in METADATA.tables.values()
        for constraint in [*table.constraints, *table.indexes]
    ]

    assert all(name and name != "None" for name in names)
    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for name in names)


def test_a_server_whose_database_is_not_migrated_is_not_ready(empty_database_url, serve):
    answer = serve(empty_database_url).get("/readyz")

    assert (answer.status_code, answer.json()["error"]) == (503, "not_migrated")
