"""Messages to receivers: queued in the transaction that caused them, delivered later, at least once to each.

When one is queued is decided in `alerts.incidents`; what becomes of it is in `store.deliveries`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from internist.schema.alerts import Alert
from internist_server.store import alerts
from internist_server.store.delivery_tables import NotificationRow
from internist_server.store.tables import RunRow


@dataclass(frozen=True, slots=True)
class Queued:
    """A message as it is now."""

    id: int
    run: str
    run_name: str
    project: str
    condition: str
    status: Literal["firing", "resolved"]
    alerts: tuple[Alert, ...]
    attempts: int


def queue_moment(session: Session, run: str, condition: str, alert: int, *, now_ms: int) -> None:
    """Queue the message of an alert that has a moment and no duration: it is told alone, and never resolved."""
    queue(session, run, condition, "firing", [alert], now_ms=now_ms)


def queue(session: Session, run: str, group: str, status: str, members: Sequence[int], *, now_ms: int) -> None:
    """Queue a message about these alerts."""
    row = NotificationRow(run_id=run, condition=group, status=status, alerts=list(members), queued_at_ms=now_ms)
    session.add(row)
    session.flush()


def has_new(session: Session) -> bool:
    """Whether nobody has looked yet whom some message goes to."""
    return (
        session.scalar(select(NotificationRow.id).where(NotificationRow.addressed_at_ms.is_(None)).limit(1)) is not None
    )


def queued(session: Session, row: NotificationRow, *, attempts: int = 0) -> Queued:
    """A message, with the alerts that it lists now."""
    run = session.get_one(RunRow, row.run_id)
    members = tuple(alerts.get_alerts(session, _members(session, row)))
    status: Literal["firing", "resolved"] = "firing" if row.status == "firing" else "resolved"
    return Queued(row.id, run.id, run.name, run.project, row.condition, status, members, attempts)


def _members(session: Session, row: NotificationRow) -> list[int]:
    """The alerts a message lists: also those that joined before it is delivered."""
    if row.condition in alerts.MOMENTS:
        return list(row.alerts)
    joined = alerts.fired_since(session, row.run_id, group=row.condition, first=min(row.alerts))
    return sorted({*row.alerts, *joined})
