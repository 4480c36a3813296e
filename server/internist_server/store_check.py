"""`internist doctor --database`: whether what must be true of a server's store is; it may run meanwhile."""

import json
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from internist_migrations.upgrade import is_current
from internist_server.settings import database_url
from internist_server.store.database import Database, sqlite_path
from internist_server.store.invariants import INVARIANTS


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "problem"]
    text: str


def command(place: str, as_json: bool) -> int:
    """Check the invariants of a store: 0 when all hold, 1 when one does not or the store cannot be read."""
    try:
        findings = list(check(database_url(place)))
    except (SQLAlchemyError, OSError, ValueError) as error:
        findings = [Finding("the database", "problem", f"it cannot be read: {str(error).splitlines()[0]}")]
    problems = [one for one in findings if one.state == "problem"]
    if as_json:
        sys.stdout.write(json.dumps({"findings": [one._asdict() for one in findings]}) + "\n")
    else:
        width = max(len(one.name) for one in findings)
        for one in findings:
            sys.stdout.write(f"{'!' if one in problems else ' '} {one.name:<{width}}  {one.text}\n")
        sys.stdout.write(f"{len(problems)} of them do not hold\n" if problems else "no problem was found\n")
    return 1 if problems else 0


def check(url: str) -> Iterator[Finding]:
    """What must be true of a store, and whether it is.

    Raises:
        OSError: there is no such database.
        SQLAlchemyError: it cannot be read.
    """
    path = sqlite_path(url)
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"there is no database at {path}")
    database = Database(url)
    try:
        if path is not None:
            yield from _of_sqlite(database)
        if not is_current(database.engine):
            text = "it is of another version: `internist serve` brings it up to date, or say `pip install -U internist`"
            yield Finding("the database is of this version", "problem", text)
            return
        with database.read() as session:
            for invariant in INVARIANTS:
                found = invariant.breaches(session)
                yield Finding(invariant.claim, "problem" if found else "ok", f"{found} times not" if found else "yes")
    finally:
        database.close()


def _of_sqlite(database: Database) -> Iterator[Finding]:
    with database.engine.connect() as connection:
        said = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
        yield Finding("the file is whole", "ok" if said == "ok" else "problem", "yes" if said == "ok" else said)
        strays = len(connection.exec_driver_sql("PRAGMA foreign_key_check").all())
        text = f"{strays} rows are not" if strays else "yes"
        yield Finding("every row belongs to another that is there", "problem" if strays else "ok", text)
