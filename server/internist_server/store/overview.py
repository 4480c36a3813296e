"""What is true of all runs and of the database together: for whoever watches the server."""

from typing import Final, get_args

from sqlalchemy import case, func, select, text
from sqlalchemy.orm import Session

from internist.schema.rules import LOST_AFTER_S
from internist.schema.views import RunState
from internist_server.store.database import sqlite_path
from internist_server.store.tables import StandingRow

_BESIDE: Final = ("", "-wal", "-shm")
"""What SQLite keeps beside a file's name."""


def count_by_state(session: Session, *, now_ms: int, since_ms: int) -> dict[str, int]:
    """Runs by state; `since_ms`: since when the server listens, before which nobody was silent."""
    lost_before_ms = now_ms - int(LOST_AFTER_S * 1000)
    is_lost = StandingRow.state.in_(("live", "stalled")) & (StandingRow.contact_ms < lost_before_ms)
    state = StandingRow.state if since_ms >= lost_before_ms else case((is_lost, "lost"), else_=StandingRow.state)
    stands = state.label("stands")  # grouped by name: PostgreSQL takes two sets of parameters for two expressions
    found = session.execute(select(stands, func.count()).where(StandingRow.state.is_not(None)).group_by("stands"))
    return dict.fromkeys(get_args(RunState), 0) | {str(name): count for name, count in found}


def database_bytes(session: Session) -> int:
    """What the database takes on its disk."""
    bind = session.get_bind()
    if bind.dialect.name != "sqlite":
        return int(session.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    path = sqlite_path(str(bind.engine.url))
    if path is None:
        return 0
    files = (path.with_name(path.name + suffix) for suffix in _BESIDE)
    return sum(file.stat().st_size for file in files if file.exists())
