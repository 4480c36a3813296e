"""Whether the server can do its work: its database takes a write, is the one that it was started on, and has room."""

import logging
import shutil
import threading
import time
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from internist_migrations.upgrade import is_current
from internist_server.errors import DatabaseGone
from internist_server.store.database import Database, sqlite_path

log = logging.getLogger(__name__)

LEAST_FREE_BYTES: Final = 64 << 20
"""With less room left, a server says so before it has to refuse what training sends."""
HOLDS_S: Final = 1.0
"""An answer holds for this long, so that who asks often costs nothing."""


@dataclass(frozen=True, slots=True)
class Unready:
    """Why the server cannot do its work."""

    code: str
    detail: str


class Readiness:
    """Looks whether one server can work; any thread may ask."""

    def __init__(self, database: Database, url: str, *, least_free: int = LEAST_FREE_BYTES) -> None:
        self._database, self._path, self._least_free = database, sqlite_path(url), least_free
        self._lock = threading.Lock()
        self._answer: Unready | None = None
        self._holds_until = 0.0

    def look(self) -> Unready | None:
        """Why not; None: it can."""
        with self._lock:
            if time.monotonic() >= self._holds_until:
                self._answer = self._look()
                self._holds_until = time.monotonic() + HOLDS_S
            return self._answer

    def _look(self) -> Unready | None:
        try:
            self._database.require_in_place()
        except DatabaseGone as error:
            return Unready("database_gone", str(error))
        if self._path is not None and (free := shutil.disk_usage(self._path.parent).free) < self._least_free:
            return Unready("storage_low", f"{free >> 20} MiB are left on the database's disk")
        try:
            if not is_current(self._database.engine):
                detail = "the database is not migrated; `internist serve` migrates it when it starts"
                return Unready("not_migrated", detail)
            self._database.try_write()
        except (SQLAlchemyError, OSError) as error:
            log.error("the database takes no write: %s", error)
            return Unready("database_unavailable", "the database does not take a write; the server's log says why")
        return None
