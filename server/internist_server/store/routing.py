"""How each parameter of an attempt is stepped."""

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from internist.schema.views import Routing
from internist.schema.wire import Route
from internist_server.store.attempts import Attempt
from internist_server.store.tables import AttemptRow


def read_routing(session: Session, attempt: Attempt) -> Routing:
    """The routing table of an attempt, in the order of its optimizers' groups; empty where none was named."""
    rows = session.scalar(select(AttemptRow.routing).where(AttemptRow.id == attempt.id)) or []
    return Routing(attempt.run, attempt.name, tuple(msgspec.convert(row, Route) for row in rows))
