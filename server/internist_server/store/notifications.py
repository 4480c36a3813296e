"""Messages to receivers: queued in the transaction that caused them, delivered later, at least once.

Per run and condition at most one group is open. Its first member that fires queues "firing"; later members join
silently; when none fires any more, "resolved" is queued.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from internist.schema.views import Alert
from internist_server.store import alerts
from internist_server.store.tables import NotificationRow, RunRow, SeriesRow

LEASE_MS = 60_000
"""A claimed message comes up again after this, should its deliverer have died."""
RETRY_MS = 2_000
LONGEST_RETRY_MS = 300_000
_CAUSES = ("own", "weight", "learning_rate")
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


def queue_news(session: Session, run: str, *, now_ms: int) -> bool:
    """Queue what the alerts of a run give cause to, after any of them has moved; whether anything was queued."""
    began = queue_firing(session, run, now_ms=now_ms)
    return queue_resolved(session, run, now_ms=now_ms) or began


def queue_firing(session: Session, run: str, *, now_ms: int) -> bool:
    """Queue a message for each condition that fires audibly and has no open group; whether any was queued."""
    current = alerts.firing(session, run, quiet=False)
    audible = _audible(session, current)
    is_queued = False
    for condition in dict.fromkeys(alert.condition for alert in current if alert.id in audible):
        if _newest_status(session, run, condition) != "firing":
            members = [alert.id for alert in current if alert.condition == condition]
            _queue(session, run, condition, "firing", members, now_ms=now_ms)
            is_queued = True
    return is_queued


def queue_moment(session: Session, run: str, condition: str, alert: int, *, now_ms: int) -> None:
    """Queue the message of an alert that has a moment and no duration: it is told alone, and never resolved."""
    _queue(session, run, condition, "firing", [alert], now_ms=now_ms)


def queue_resolved(session: Session, run: str, *, now_ms: int) -> bool:
    """Queue a message for each open group of which no member fires any more; whether any was queued."""
    is_queued = False
    newest = select(func.max(NotificationRow.id)).where(
        NotificationRow.run_id == run, NotificationRow.condition.not_in(alerts.MOMENTS)
    )
    groups = session.scalars(
        select(NotificationRow)
        .where(NotificationRow.id.in_(newest.group_by(NotificationRow.condition)))
        .where(NotificationRow.status == "firing")
    ).all()
    for group in groups:
        if not alerts.firing(session, run, condition=group.condition, quiet=False):
            members = alerts.fired_since(session, run, condition=group.condition, first=min(group.alerts))
            _queue(session, run, group.condition, "resolved", members, now_ms=now_ms)
            is_queued = True
    return is_queued


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


def _audible(session: Session, current: Sequence[Alert]) -> set[int]:
    """Alerts that may open a group: not features while a cause in the same or an earlier block fires."""
    ids = [alert.series for alert in current if alert.series is not None]
    orders = {row.id: row.facts["order"] for row in session.scalars(select(SeriesRow).where(SeriesRow.id.in_(ids)))}
    causes = [alert for alert in current if alert.condition == "update" and alert.cause in _CAUSES]

    def is_explained(alert: Alert) -> bool:
        here = orders.get(alert.series or 0, 0)
        return any(cause.block == alert.block or orders.get(cause.series or 0, -1) <= here for cause in causes)

    return {alert.id for alert in current if alert.cause != "feature" or not is_explained(alert)}


def _members(session: Session, row: NotificationRow) -> list[int]:
    """The alerts a message lists: also those that joined before it is delivered."""
    if row.condition in alerts.MOMENTS:
        return list(row.alerts)
    joined = alerts.fired_since(session, row.run_id, condition=row.condition, first=min(row.alerts))
    return sorted({*row.alerts, *joined})


def _newest_status(session: Session, run: str, condition: str) -> str | None:
    query = select(NotificationRow.status).where(NotificationRow.run_id == run, NotificationRow.condition == condition)
    return session.scalar(query.order_by(NotificationRow.id.desc()).limit(1))


def _queue(session: Session, run: str, condition: str, status: str, members: list[int], *, now_ms: int) -> None:
    row = NotificationRow(
        run_id=run,
        condition=condition,
        status=status,
        alerts=members,
        queued_at_ms=now_ms,
        due_at_ms=now_ms,
        attempts=0,
    )
    session.add(row)
    session.flush()
