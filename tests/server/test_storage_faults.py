"""A full disk and a database that is gone: nothing acknowledged is lost, and the client is told to come again."""

from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Engine, event

from tests.server.sending import Sender, module_series

SERIES = [module_series(n, "activation.rms_max", f"blocks.{n}") for n in range(500)]


@pytest.fixture
def full():
    """Fills the disk, as far as the SQLite databases opened meanwhile can tell, until it is emptied."""
    pages = {"limit": 0}

    def limit(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages['limit'] or 2**30}")

    event.listen(Engine, "begin", limit, insert=True)
    yield pages
    event.remove(Engine, "begin", limit)


def frames(sender, steps):
    return [sender.frame(step, [float(step)] * len(SERIES)) for step in steps]


def test_on_a_full_disk_nothing_acknowledged_is_lost_and_the_rest_arrives_later(full, sqlite_api):
    sender = Sender(sqlite_api)
    known = sender.send([*sender.declare(SERIES), *frames(sender, range(0, 100, 10))])["acknowledged"]
    full["limit"] = 1  # SQLite takes the present size where the limit is below it
    refused = frames(sender, range(100, 4_000, 10))

    answer = sender.post(refused)

    assert (answer.status_code, answer.json()["error"]) == (507, "storage_full")
    assert "acknowledged is safe" in answer.json()["detail"]
    assert sender.points("activation.rms_max", subject="^blocks.7$") == {s: float(s) for s in range(0, 100, 10)}
    full["limit"] = 0
    assert sender.post_start().json()["acknowledged"] == known
    assert sender.send(refused)["stored"] == len(refused)
    assert sender.points("activation.rms_max", subject="^blocks.7$", pixels=10_000)[3_990] == 3_990.0


def test_while_the_database_is_gone_the_client_is_told_to_come_again(sqlite_url, serve):
    engine = sqlalchemy.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO runs_elsewhere")
    api = serve(sqlite_url)

    answer = Sender(api, register=False).post_start()

    assert (answer.status_code, answer.json()["error"]) == (503, "database_unavailable")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs_elsewhere RENAME TO runs")
    engine.dispose()
    assert Sender(api, register=False).post_start().status_code == 200


def test_what_would_be_lost_with_a_deleted_file_is_not_acknowledged(sqlite_api, sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    sender = Sender(sqlite_api)
    sender.send([*sender.declare(SERIES), *frames(sender, [0])])
    later = frames(sender, [10])
    moved = path.rename(path.with_suffix(".moved"))

    answer = sender.post(later)

    assert (answer.status_code, answer.json()["error"]) == (503, "database_gone")
    moved.rename(path)
    assert sender.send(later)["stored"] == 1
    assert sender.points("activation.rms_max", subject="^blocks.7$") == {0: 0.0, 10: 10.0}
