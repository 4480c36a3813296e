"""Messages to receivers: queued in the transaction that caused them, delivered later, at least once.

When one is queued is decided in `alerts.incidents`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from internist.schema.views import Alert
from internist_server.store import alerts
from internist_server.store.tables import NotificationRow, RunRow

LEASE_MS = 60_000
"""A claimed message comes up again after this, should its deliverer have died."""
RETRY_MS = 2_000
LONGEST_RETRY_MS = 300_000
GIVE_UP_AFTER = 200
"""Deliveries tried before a message is given up: about 16 hours."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that is due."""

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
    row = NotificationRow(
        run_id=run, condition=group, status=status, alerts=list(members), queued_at_ms=now_ms, due_at_ms=now_ms,
        attempts=0,
    )  # fmt: skip
    session.add(row)
    session.flush()


def is_due(session: Session, *, now_ms: int) -> bool:
    """Whether any message is due."""
    query = select(NotificationRow.id).where(
        NotificationRow.delivered_at_ms.is_(None), NotificationRow.due_at_ms <= now_ms
    )
    return session.scalar(query.where(NotificationRow.attempts < GIVE_UP_AFTER).limit(1)) is not None


def claim(session: Session, *, now_ms: int, limit: int = 16) -> list[Queued]:
    """The messages that are due, oldest first; each is not due again before its lease ends."""
    rows = session.scalars(
        select(NotificationRow)
        .where(NotificationRow.delivered_at_ms.is_(None), NotificationRow.due_at_ms <= now_ms)
        .where(NotificationRow.attempts < GIVE_UP_AFTER)
        .order_by(NotificationRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    claimed = []
    for row in rows:
        row.due_at_ms = now_ms + LEASE_MS
        run = session.get_one(RunRow, row.run_id)
        members = tuple(alerts.get_alerts(session, _members(session, row)))
        status: Literal["firing", "resolved"] = "firing" if row.status == "firing" else "resolved"
        claimed.append(Queued(row.id, run.id, run.name, run.project, row.condition, status, members, row.attempts))
    session.flush()
    return claimed


def settle(session: Session, notification: int, error: str | None, *, now_ms: int) -> None:
    """Say that a message was delivered, or why not: then it is due again, later each time."""
    row = session.get(NotificationRow, notification)
    if row is None:
        return
    row.attempts += 1
    row.error = error
    if error is None:
        row.delivered_at_ms = now_ms
        alerts.mark_notified(session, row.alerts)
    else:
        row.due_at_ms = now_ms + min(RETRY_MS << min(row.attempts - 1, 16), LONGEST_RETRY_MS)
    session.flush()


def _members(session: Session, row: NotificationRow) -> list[int]:
    """The alerts a message lists: also those that joined before it is delivered."""
    if row.condition in alerts.MOMENTS:
        return list(row.alerts)
    joined = alerts.fired_since(session, row.run_id, group=row.condition, first=min(row.alerts))
    return sorted({*row.alerts, *joined})
