"""What receivers are told of a run's alerts: decided and queued in the transaction that moved them."""

from sqlalchemy.orm import Session

from internist.schema.alerts import Alert
from internist_server.alerts.incidents import Incident, Move, Policy, decide
from internist_server.alerts.labels import group_of
from internist_server.alerts.silences import silenced
from internist_server.store import alerts, incidents, notifications
from internist_server.store.series import orders_of
from internist_server.store.silences import list_silences


def tell(session: Session, run: str, policy: Policy, *, now_ms: int, is_over: bool = False) -> bool:
    """Open, repeat and close the incidents of a run, after any of its alerts has moved; whether a message was queued.

    Args:
        policy: how long is waited.
        now_ms: the present.
        is_over: nothing of the run that does not fire now will fire again: it ended, or began anew.
    """
    is_queued = False
    for move in moves(session, run, policy, now_ms=now_ms, is_over=is_over):
        if move.kind in ("repeat", "close"):
            assert move.incident is not None
            members = incidents.members(session, move.incident)
        else:
            members = list(move.alerts)
        incidents.note(session, run, move, now_ms=now_ms)
        if move.kind in ("open", "repeat", "close"):
            status = "resolved" if move.kind == "close" else "firing"
            notifications.queue(session, run, move.group, status, members, now_ms=now_ms)
            is_queued = True
    return is_queued


def moves(session: Session, run: str, policy: Policy, *, now_ms: int, is_over: bool = False) -> list[Move]:
    """What is to be done about the incidents of a run, now."""
    firing = alerts.firing(session, run, quiet=False)
    opened = incidents.open_incidents(session, run, now_ms=now_ms)
    if not firing and not opened:
        return []
    known = {incident.group for incident in opened}
    opens = any(group_of(alert) not in known for alert in firing)
    recent = _recent(session, opened, {alert.id for alert in firing}) if opens else []
    silences = list_silences(session, now_ms=now_ms)
    return decide(
        opened,
        firing,
        recent=recent,
        orders=orders_of(session, [alert.series for alert in (*firing, *recent) if alert.series is not None]),
        silenced=silenced(firing, silences),
        policy=policy,
        now_ms=now_ms,
        is_over=is_over,
    )


def _recent(session: Session, opened: list[Incident], firing: set[int]) -> list[Alert]:
    """The alerts of open incidents that fire no more."""
    found = {one for incident in opened for one in incidents.members(session, incident.id)}
    return alerts.get_alerts(session, sorted(found - firing))
