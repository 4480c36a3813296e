"""Ready means that a write would be taken, where it should be."""

import sqlite3
from pathlib import Path

import pytest

from internist_server.readiness import Readiness
from internist_server.store.database import Database


def test_a_server_whose_database_takes_a_write_is_ready(api):
    for _ in range(2):
        assert api.get("/readyz").json() == {"status": "ok", "service": "internist"}


@pytest.fixture
def path(sqlite_url):
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.fixture
def ready(sqlite_url, monkeypatch):
    monkeypatch.setattr("internist_server.store.database.BUSY_TIMEOUT_MS", 10)
    database = Database(sqlite_url)
    found = Readiness(database, sqlite_url)
    assert found.look() is None
    found._holds_until = 0.0  # the next look is a new one
    yield found
    database.close()


def test_a_database_that_another_holds_for_writing_takes_no_write(ready, path):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    assert ready.look().code == "database_unavailable"
    other.close()


def test_a_file_that_was_deleted_or_replaced_is_not_the_database(ready, path):
    copy = path.read_bytes()
    path.unlink()
    assert ready.look().code == "database_gone"

    path.write_bytes(copy)
    ready._holds_until = 0.0
    assert ready.look().code == "database_gone"


def test_a_disk_that_is_almost_full_is_told(ready):
    ready._least_free = 1 << 62

    assert ready.look().code == "storage_low"


def test_an_answer_holds_for_a_moment(ready):
    assert ready.look() is None
    ready._database._file = 0, 0

    assert ready.look() is None
