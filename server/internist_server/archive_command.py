"""`internist archive RUN FILE` and `internist unarchive FILE`: a run is put away into a file, and comes back."""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection

from internist_migrations.upgrade import is_current, upgrade
from internist_server.database_commands import REASONS, fail, meant, parser_of
from internist_server.errors import Conflict, ServerError
from internist_server.settings import database_url
from internist_server.store import moving, removal
from internist_server.store.attempts import lock_run
from internist_server.store.copying import copy_sqlite
from internist_server.store.database import Database, sqlite_path
from internist_server.store.runs import read_cursor
from internist_server.store.standings import load_newest

_CODES = (
    "exit code: 0; 1 there is no such run, it is not over, or something cannot be read or written; 2 wrong arguments"
)


def archive(argv: Sequence[str]) -> int:
    """Put a run that is over into a file, and take it out of the server's database, while the server runs."""
    parser = parser_of(archive, codes=_CODES)
    parser.add_argument("run", help="id of the run")
    parser.add_argument("file", type=Path, help="the file to write; it must not be there")
    options = parser.parse_args(argv)
    try:
        rows = put_away(meant(options), options.run, options.file, now_ms=time.time_ns() // 1_000_000)
    except REASONS as error:
        return fail(archive, error)
    size = options.file.stat().st_size / (1 << 20)
    sys.stdout.write(f"{options.file}: run {options.run}, {rows} rows, {size:.1f} MiB\n")
    return 0


def unarchive(argv: Sequence[str]) -> int:
    """Bring a run back from the file that it was put into, while the server runs."""
    parser = parser_of(unarchive, codes=_CODES)
    parser.add_argument("file", type=Path, help="what `internist archive` wrote, by this version or an earlier one")
    options = parser.parse_args(argv)
    try:
        run = take_back(meant(options), options.file)
    except REASONS as error:
        return fail(unarchive, error)
    sys.stdout.write(f"run {run} is back\n")
    return 0


def put_away(url: str, run: str, file: Path, *, now_ms: int) -> int:
    """Move a run into a file; the number of its rows. It leaves the database when the file is whole.

    Raises:
        RunNotFound: there is no such run.
        Conflict: it is not over, or something of it changed meanwhile.
        OSError: there is no such database, it is of another version, or the file is there or cannot be written.
        SQLAlchemyError, sqlite3.Error: one of the two cannot be read or written. A file that was whole stays, since the
            run may have left the database before its answer was lost.
    """
    if file.exists():
        raise FileExistsError(f"{file} is there already, and is not overwritten")
    source = sqlite_path(url)
    if source is not None and not source.is_file():
        raise FileNotFoundError(f"there is no database at {source}")
    database = Database(url)
    try:
        if not is_current(database.engine):
            raise OSError("the database is of another version: `internist serve` brings it up to date")
        with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=f"{file.name}-") as folder:
            draft = Path(folder) / "run.db"
            with database.read() as session:
                state = load_newest(session, run).vitals(now_ms).state
                if state in ("live", "stalled"):
                    raise Conflict(f"run {run!r} is {state}: only one that is over is put away")
                cursor = read_cursor(session, run)
                rows = _write(session.connection(), database_url(str(draft)), run)
            copy_sqlite(draft, file)
        try:
            _remove(database, run, cursor=cursor)
        except ServerError:  # the run is still there; of a lost connection it is not known, and the file stays
            file.unlink()
            raise
        return rows
    finally:
        database.close()


def take_back(url: str, file: Path) -> str:
    """Move a run from a file into a database, in one transaction; its id. The file stays.

    Raises:
        OSError: there is no such file.
        Conflict: the database has a run of that id.
        Invalid: it is no file of one run.
        NewerDatabase: a newer version wrote the file.
        SQLAlchemyError, sqlite3.Error: one of the two cannot be read or written.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run.db"  # brought to this version's form; the file itself stays as it is
        copy_sqlite(file, copy)
        source, target = database_url(str(copy)), url
        upgrade(source)
        upgrade(target)
        old, new = Database(source), Database(target)
        try:
            with old.read() as reader, new.write() as writer:
                return moving.copy_in(reader.connection(), writer.connection())
        finally:
            old.close()
            new.close()


def _write(reader: Connection, url: str, run: str) -> int:
    """Write a run into a database of its own; the number of its rows."""
    upgrade(url)
    draft = Database(url)
    try:
        with draft.write() as writer:
            return moving.copy_out(reader, writer.connection(), run)
    finally:
        draft.close()


def _remove(database: Database, run: str, *, cursor: int) -> None:
    """Delete a run of which everything lies in a file. Once it is begun it is seen as it was, or not at all."""
    with database.write() as session:
        lock_run(session, run)
        if read_cursor(session, run) != cursor:
            raise Conflict(f"something of run {run!r} has changed while it was put away; it stays as it is")
        while removal.delete_blocks(session, run):
            pass
        removal.delete_run(session, run)
