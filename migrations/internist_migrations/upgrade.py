"""The database brought to this version's form, or back: what `internist serve` does when it starts."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from internist_server.store.database import make_engine
from internist_server.store.metadata import METADATA

_LOCK: Final = 8237
"""Key of the lock that lets one process migrate a PostgreSQL database at a time."""


class NewerDatabase(Exception):  # noqa: N818
    """A newer version of Internist has migrated the database, which this one cannot read."""


def upgrade(url: str, revision: str = "head") -> None:
    """Bring a database up to a revision; the newest, if none is named.

    Raises:
        NewerDatabase: it is beyond every revision that this version knows.
    """
    _migrate(url, revision, is_upgrade=True)


def downgrade(url: str, revision: str) -> None:
    """Take a database back to a revision; `base` empties it."""
    _migrate(url, revision, is_upgrade=False)


def is_current(engine: Engine) -> bool:
    """Whether a database has this version's form."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_heads() == tuple(_script().get_heads())


def drift(engine: Engine) -> list[object]:
    """Differences between a migrated database and the tables as they are written; empty when there are none."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, METADATA))


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, around a connection that is open already."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.attributes["connection"] = connection
    return made


def _migrate(url: str, revision: str, *, is_upgrade: bool) -> None:
    engine = make_engine(url)
    try:
        with engine.connect().execution_options(immediate=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            _require_known(connection)
            (command.upgrade if is_upgrade else command.downgrade)(config(connection), revision)
    finally:
        engine.dispose()


def _require_known(connection: Connection) -> None:
    known = {one.revision for one in _script().walk_revisions()}
    for found in MigrationContext.configure(connection).get_current_heads():
        if found not in known:
            newest = _script().get_current_head()
            raise NewerDatabase(
                f"a newer version of Internist migrated it to revision {found}, and this one knows revisions up to "
                f"{newest}: update Internist, or restore a backup from before"
            )


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(config())
