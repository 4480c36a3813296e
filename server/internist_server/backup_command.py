"""`internist backup FILE` and `internist restore FILE`: a server's database as a file, and back, while it runs."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from internist_migrations.upgrade import is_current, upgrade
from internist_server.database_commands import REASONS, fail, meant, parser_of
from internist_server.settings import database_url
from internist_server.store.copying import copy_sqlite, copy_tables, count_runs
from internist_server.store.database import make_engine, sqlite_path

_CODES = "exit code: 0; 1 a database or a file cannot be read or written; 2 wrong arguments"


def backup(argv: Sequence[str]) -> int:
    """Write everything that a server keeps to a file, while it runs."""
    parser = parser_of(backup, codes=_CODES)
    parser.add_argument("file", type=Path, help="the file to write; it must not be there")
    options = parser.parse_args(argv)
    try:
        if options.file.exists():
            raise FileExistsError(f"{options.file} is there already, and is not overwritten")
        write_backup(meant(options), options.file)
    except REASONS as error:
        return fail(backup, error)
    size = options.file.stat().st_size / (1 << 20)
    sys.stdout.write(f"{options.file}: {count_runs(database_url(str(options.file)))} runs, {size:.1f} MiB\n")
    return 0


def restore(argv: Sequence[str]) -> int:
    """Put what a backup holds in the place of what a server keeps, while it runs."""
    parser = parser_of(restore, codes=_CODES)
    parser.add_argument("file", type=Path, help="what `internist backup` wrote, by this version or an earlier one")
    parser.add_argument("--replace", action="store_true", help="also where the database holds runs: they are lost")
    options = parser.parse_args(argv)
    try:
        rows = read_backup(options.file, meant(options), replaces=options.replace)
    except REASONS as error:
        return fail(restore, error)
    sys.stdout.write(f"{options.file} is restored: {rows} rows\n")
    return 0


def write_backup(url: str, file: Path) -> None:
    """A database as a file.

    Raises:
        OSError: there is no such database, it is of another version, or the file cannot be written.
        SQLAlchemyError, sqlite3.Error: it cannot be read.
    """
    source = sqlite_path(url)
    if source is not None:
        if not source.is_file():
            raise FileNotFoundError(f"there is no database at {source}")
        copy_sqlite(source, file)
        return
    engine = make_engine(url)
    try:
        if not is_current(engine):
            raise OSError("the database is of another version: `internist serve` brings it up to date")
    finally:
        engine.dispose()
    with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=f"{file.name}-") as folder:
        tables = Path(folder) / "tables.db"
        target = database_url(str(tables))
        upgrade(target)
        copy_tables(url, target)
        copy_sqlite(tables, file)


def read_backup(file: Path, url: str, *, replaces: bool) -> int:
    """Put a backup in the place of what a database holds; the number of rows.

    Raises:
        OSError: there is no such file, or the database holds runs and `replaces` is not said.
        NewerDatabase: a newer version wrote the backup.
        SQLAlchemyError, sqlite3.Error: one of the two cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "backup.db"  # brought to this version's form; the backup itself stays as it is
        copy_sqlite(file, copy)
        source = database_url(str(copy))
        upgrade(source)
        upgrade(url)
        held = count_runs(url)
        if held and not replaces:
            raise OSError(f"the database holds {held} runs; with --replace the backup takes their place")
        return copy_tables(source, url)
