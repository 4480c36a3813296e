"""A whole database as a file of its own, and back: one consistent state of it, while others read and write.

The file is a SQLite database in this version's form, whatever it was made of: a server can be started on it.
"""

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Integer, Table, func, select, text, update
from sqlalchemy.types import BigInteger

from internist_server.store.database import make_engine
from internist_server.store.metadata import METADATA
from internist_server.store.tables import JudgeStateRow, RunRow

ROWS: Final = 500
"""Rows that are held in memory at a time."""


def copy_sqlite(source: Path, target: Path) -> None:
    """A SQLite database in use as a file: what was committed when this began.

    Raises:
        sqlite3.Error: it cannot be read, or is damaged; nothing is left behind.
        OSError: the file cannot be written.
    """
    draft = target.with_name(f"{target.name}.draft")
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(draft)) as new,
        ):
            old.backup(new)  # in one go: a reader keeps no writer waiting
            new.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
            found = new.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"it is damaged: {found}")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def count_runs(url: str) -> int:
    """Runs that a database of this version's form holds."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(RunRow)) or 0
    finally:
        engine.dispose()


def copy_tables(source: str, target: str) -> int:
    """Put what one database holds in the place of what another one holds, in one transaction; the number of rows.

    Both have this version's form. Who reads the target sees it as it was until all is there, and keeps nothing of what
    it had in memory.
    """
    old, new = make_engine(source), make_engine(target)
    isolation = {} if old.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    try:
        with (
            old.connect().execution_options(**isolation) as reader,
            new.connect().execution_options(immediate=True) as writer,
            reader.begin(),
            writer.begin(),
        ):
            tables = METADATA.sorted_tables
            for table in reversed(tables):
                writer.execute(table.delete())
            count = sum(_copy(table, reader, writer) for table in tables)
            apart = secrets.randbelow(1 << 40)  # judges in memory are of what was here before
            writer.execute(update(JudgeStateRow).values(version=JudgeStateRow.version + apart))
            return count
    finally:
        old.dispose()
        new.dispose()


def _copy(table: Table, reader: Connection, writer: Connection) -> int:
    count = 0
    rows = reader.execution_options(yield_per=ROWS).execute(select(table))
    for some in rows.mappings().partitions():
        writer.execute(table.insert(), [dict(row) for row in some])
        count += len(some)
    if writer.dialect.name == "postgresql":
        count_on(table, writer)
    return count


def count_on(table: Table, writer: Connection) -> None:
    """Let the numbers that PostgreSQL gives begin behind those that are taken."""
    for column in table.primary_key.columns:
        if isinstance(column.type, BigInteger | Integer) and column is table.autoincrement_column:
            sequence = writer.scalar(text("SELECT pg_get_serial_sequence(:t, :c)"), {"t": table.name, "c": column.name})
            if sequence is not None:
                newest = writer.scalar(select(func.max(column)))
                writer.execute(select(func.setval(sequence, newest or 1, newest is not None)))
