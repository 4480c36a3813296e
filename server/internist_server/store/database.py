"""The connection to the database: readers at will, writers one at a time."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from internist_server.errors import DatabaseGone

log = logging.getLogger(__name__)

PROBE_S = 2.0
"""How long a probe waits for the server's own writers."""
MARKS = 1 << 16
PAGE_BYTES = 1_024
"""Of SQLite's pages, which it writes whole: a live frame changes some bytes in each of several."""
CHECKPOINT_BYTES = 8 << 20
"""Of SQLite's log, from which on it is written to the file: a page that changed many times is written there once."""
BUSY_TIMEOUT_MS = 30_000
"""How long a writer waits for another process before it gives up."""


class Database:
    """One database, SQLite or PostgreSQL. Every statement of the server goes through one of its sessions."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        self._path = sqlite_path(url)
        self._file = identity(self._path)
        self._reader = self.engine  # SQLite reads are snapshots as they are
        if not self._is_sqlite:
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._writer = threading.RLock()
        self._wrote_at = time.monotonic()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent state and writes nothing."""
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are durable when the block ends, or undone when it raises.

        In SQLite there is one writer at a time, in PostgreSQL callers lock the run (`store.runs.lock_run`).

        Raises:
            DatabaseGone: SQLite's file is no longer where the next server will look for it.
        """
        if not self._is_sqlite:
            with Session(self.engine) as session, session.begin():
                yield session
            return
        with (
            self._writer,
            self.engine.connect().execution_options(immediate=True) as connection,
            Session(connection) as session,
            session.begin(),
        ):
            yield session
            session.flush()
            self.require_in_place()
        self._wrote_at = time.monotonic()

    def require_in_place(self) -> None:
        """What is written lands in the file at the database's place, not in one that was deleted or moved away.

        Raises:
            DatabaseGone: it is another one, or none.
        """
        found = identity(self._path)
        self._file = self._file or found  # an engine makes its file with the first connection
        if found != self._file:
            raise DatabaseGone

    def try_write(self) -> None:
        """Make a change that changes nothing and is durable when this returns.

        Raises:
            SQLAlchemyError: the database does not take it.
            DatabaseGone: it would be lost.
        """
        self.require_in_place()
        if not self._is_sqlite:
            with self.engine.begin() as connection:
                connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
            return
        if not self._writer.acquire(timeout=PROBE_S):
            if time.monotonic() - self._wrote_at > BUSY_TIMEOUT_MS / 1000:
                raise TimeoutError("no writer has come to its end for too long")
            return  # others write
        try:
            with self.engine.connect().execution_options(immediate=True) as connection, connection.begin():
                mark = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
                connection.exec_driver_sql(f"PRAGMA user_version={(mark + 1) % MARKS}")
        finally:
            self._writer.release()

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def make_engine(url: str) -> Engine:
    """An engine with the safety settings this project wants of each database."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, json_deserializer=_read_json, pool_pre_ping=True, pool_size=8, max_overflow=24)
    connecting = {"timeout": BUSY_TIMEOUT_MS / 1000}
    engine = create_engine(parsed, json_deserializer=_read_json, connect_args=connecting, pool_size=8, max_overflow=40)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _read_json(text: str | bytes) -> Any:
    """What a column of JSON holds; NaN, which the fast reader does not know, is a number in what was written."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite database; None for another one, or one in memory."""
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    return Path(str(parsed.database)) if is_file else None


def identity(path: Path | None) -> tuple[int, int] | None:
    """What tells a file from another one that lies at its place; None without one."""
    try:
        return None if path is None else ((found := path.stat()).st_dev, found.st_ino)
    except OSError:
        return None


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver would begin late and deferred; `_begin_sqlite` does it
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a file that is made now
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_BYTES // PAGE_BYTES}")
    cursor.execute("PRAGMA synchronous=FULL")  # an acknowledgement is given after the commit
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    is_writer = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")
