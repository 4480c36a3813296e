"""The one thing SQLite and PostgreSQL spell through different modules: an insert that meets an existing key."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from internist_server.store.tables import Base


def upsert(
    session: Session, table: type[Base], rows: Sequence[dict[str, Any]], *, key: Sequence[str], update: Sequence[str]
) -> None:
    """Insert rows; where the key exists, set `update` from the new row instead (nothing, if empty).

    Of two rows with one key the later counts.
    """
    if not rows:
        return
    rows = list({tuple(row[name] for name in key): row for row in rows}.values())
    module = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    statement = module.insert(table)
    if update:
        changed = {name: statement.excluded[name] for name in update}
        session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=changed), rows)
    else:
        session.execute(statement.on_conflict_do_nothing(index_elements=list(key)), rows)
