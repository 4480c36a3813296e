"""The one thing SQLite and PostgreSQL spell through different modules: an insert that meets an existing key."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from internist_server.store.base import Base


def upsert(
    session: Session, table: type[Base], rows: Sequence[dict[str, Any]], *, key: Sequence[str], update: Sequence[str]
) -> None:
    """Insert rows; where the key exists, set `update` from the new row instead (nothing, if empty).

    Of two rows with one key the later counts.
    """
    if not rows:
        return
    rows = list({tuple(row[name] for name in key): row for row in rows}.values())
    session.execute(_upsert(session.get_bind().dialect.name, table, tuple(key), tuple(update)), rows)


@cache
def _upsert(dialect: str, table: type[Base], key: tuple[str, ...], update: tuple[str, ...]) -> Executable:
    """The statement; there are as many as there are calls of `upsert` in the code."""
    module = sqlite if dialect == "sqlite" else postgresql
    statement = module.insert(table.__table__)
    changed = {name: statement.excluded[name] for name in update}
    ready: Executable = (
        statement.on_conflict_do_update(index_elements=list(key), set_=changed)
        if update
        else statement.on_conflict_do_nothing(index_elements=list(key))
    )
    return ready
