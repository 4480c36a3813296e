"""Messages on their way to one receiver each: claimed, delivered or tried again, and given up in the end."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session

from internist.schema.alerts import Alert, Delivery
from internist_server.alerts.address_book import Address
from internist_server.store import alerts
from internist_server.store.delivery_tables import DeliveryRow, NotificationRow
from internist_server.store.dialects import upsert
from internist_server.store.notifications import Queued, queued
from internist_server.store.tables import RunRow

LEASE_MS: Final = 120_000
"""What was claimed, one message at a time, comes up again after this, should its deliverer have died: longer than any
receiver is waited for."""
RETRY_MS: Final = 2_000
LONGEST_RETRY_MS: Final = 300_000
GIVE_UP_AFTER: Final = 200
"""Tries before a message is given up for one receiver: about 16 hours."""
ADDRESSED_AT_ONCE: Final = 64
_FAR_MS: Final = LONGEST_RETRY_MS + LEASE_MS
"""Nothing is due later than this from now: where it is, the clock was set back, and it is due."""
State = Literal["waiting", "failing", "delivered", "given up"]

_IS_OPEN: Final = DeliveryRow.delivered_at_ms.is_(None) & DeliveryRow.given_up_at_ms.is_(None)
_IS: Final[dict[State, ColumnElement[bool]]] = {
    "waiting": _IS_OPEN & (DeliveryRow.attempts == 0),
    "failing": _IS_OPEN & (DeliveryRow.attempts > 0),
    "delivered": DeliveryRow.delivered_at_ms.is_not(None),
    "given up": DeliveryRow.given_up_at_ms.is_not(None),
}


def has_work(session: Session, receiver: str, *, now_ms: int) -> bool:
    """Whether there is anything to address, or a message is due for a receiver."""
    is_new = exists().where(NotificationRow.addressed_at_ms.is_(None))
    is_due = exists().where(DeliveryRow.receiver == receiver, _IS_OPEN, _due(now_ms))
    return bool(session.scalar(select(is_new | is_due)))


def address(session: Session, told: Callable[[Sequence[Alert]], Iterable[Address]], *, now_ms: int) -> None:
    """Give each new message a delivery for everyone whom it goes to."""
    rows = session.scalars(
        select(NotificationRow)
        .where(NotificationRow.addressed_at_ms.is_(None))
        .order_by(NotificationRow.id)
        .limit(ADDRESSED_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        found = [
            {"notification_id": row.id, "receiver": one.key, "name": one.name, "due_at_ms": now_ms, "attempts": 0}
            for one in told(queued(session, row).alerts)
        ]
        upsert(session, DeliveryRow, found, key=["notification_id", "receiver"], update=[])
        row.addressed_at_ms = now_ms
    session.flush()


def claim(session: Session, receiver: str, *, now_ms: int) -> Queued | None:
    """The oldest message that is due for a receiver; it is not due again before its lease ends."""
    row = session.scalar(
        select(DeliveryRow)
        .where(DeliveryRow.receiver == receiver, _IS_OPEN, _due(now_ms))
        .order_by(DeliveryRow.notification_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if row is None:
        return None
    row.due_at_ms = now_ms + LEASE_MS
    session.flush()
    return queued(session, session.get_one(NotificationRow, row.notification_id), attempts=row.attempts)


def settle(session: Session, notification: int, receiver: str, error: str | None, *, now_ms: int) -> None:
    """Say that a receiver took a message, or why not: then it is due again for this one, later each time."""
    row = session.get(DeliveryRow, (notification, receiver))
    if row is None:
        return
    row.attempts += 1
    row.error = error
    if error is None:
        row.delivered_at_ms = now_ms
        alerts.mark_notified(session, session.get_one(NotificationRow, notification).alerts)
    elif row.attempts >= GIVE_UP_AFTER:
        row.given_up_at_ms = now_ms
    else:
        row.due_at_ms = now_ms + min(RETRY_MS << min(row.attempts - 1, 16), LONGEST_RETRY_MS)
    session.flush()


def give_up_others(session: Session, receivers: Iterable[str], *, now_ms: int) -> None:
    """Give up what waits for receivers that there are no more."""
    session.execute(
        update(DeliveryRow)
        .where(_IS_OPEN, DeliveryRow.receiver.not_in(list(receivers)))
        .values(given_up_at_ms=now_ms, error="it is no receiver of this server any more")
    )


def list_deliveries(
    session: Session, *, states: Sequence[State], project: str | None = None, limit: int
) -> list[Delivery]:
    """Deliveries in these states (none: in all), the newest first; of one project's runs, or of all."""
    query = select(DeliveryRow, NotificationRow).join(
        NotificationRow, NotificationRow.id == DeliveryRow.notification_id
    )
    if states:
        is_wanted = _IS[states[0]]
        for state in states[1:]:
            is_wanted |= _IS[state]
        query = query.where(is_wanted)
    if project is not None:
        query = query.where(NotificationRow.run_id.in_(select(RunRow.id).where(RunRow.project == project)))
    query = query.order_by(DeliveryRow.notification_id.desc(), DeliveryRow.receiver).limit(limit)
    return [_delivery(*row) for row in session.execute(query)]


def counts(session: Session) -> dict[tuple[str, State], int]:
    """Deliveries by receiver's name and state, without those that were made."""
    found: dict[tuple[str, State], int] = {}
    for state in ("waiting", "failing", "given up"):
        query = select(DeliveryRow.name, func.count()).where(_IS[state]).group_by(DeliveryRow.name)
        found |= {(name, state): count for name, count in session.execute(query)}
    return found


def _due(now_ms: int) -> ColumnElement[bool]:
    return (DeliveryRow.due_at_ms <= now_ms) | (DeliveryRow.due_at_ms > now_ms + _FAR_MS)


def _delivery(row: DeliveryRow, notification: NotificationRow) -> Delivery:
    state: State = "delivered" if row.delivered_at_ms is not None else "failing" if row.attempts else "waiting"
    return Delivery(
        notification=row.notification_id,
        run=notification.run_id,
        condition=notification.condition,
        status="firing" if notification.status == "firing" else "resolved",
        receiver=row.name,
        state="given up" if row.given_up_at_ms is not None else state,
        attempts=row.attempts,
        queued_at_ms=notification.queued_at_ms,
        due_at_ms=row.due_at_ms,
        delivered_at_ms=row.delivered_at_ms,
        given_up_at_ms=row.given_up_at_ms,
        error=row.error,
    )
