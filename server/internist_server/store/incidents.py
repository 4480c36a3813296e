"""Incidents as they are kept: what receivers know of and what is over for them."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from internist_server.alerts.incidents import FLAPPING_MS, Incident, Move
from internist_server.store import alerts
from internist_server.store.delivery_tables import IncidentRow

_IS_OPEN = IncidentRow.closed_at_ms.is_(None)


def open_incidents(session: Session, run: str, *, now_ms: int) -> list[Incident]:
    """The open incidents of a run."""
    rows = session.scalars(
        select(IncidentRow).where(IncidentRow.run_id == run, _IS_OPEN).order_by(IncidentRow.id)
    ).all()
    return [
        Incident(row.id, row.condition, row.told_at_ms, row.calm_since_ms, _ends(session, row, now_ms=now_ms))
        for row in rows
    ]


def members(session: Session, incident: int) -> list[int]:
    """Ids of all alerts of an incident that have fired aloud so far."""
    row = session.get_one(IncidentRow, incident)
    return alerts.fired_since(session, row.run_id, group=row.condition, first=row.first_alert)


def note(session: Session, run: str, move: Move, *, now_ms: int) -> None:
    """Keep what a move has made of an incident."""
    if move.incident is None:
        session.add(
            IncidentRow(
                run_id=run, condition=move.group, first_alert=min(move.alerts), opened_at_ms=now_ms, told_at_ms=now_ms
            )
        )
        session.flush()
        return
    row = session.get_one(IncidentRow, move.incident)
    if move.kind == "close":
        row.closed_at_ms = now_ms
    elif move.kind == "repeat":
        row.told_at_ms = now_ms
    else:
        row.calm_since_ms = now_ms if move.kind == "calm" else None
    session.flush()


def runs_with_incidents(session: Session) -> list[str]:
    """Runs of which an incident is open."""
    return list(session.scalars(select(IncidentRow.run_id).where(_IS_OPEN).distinct()))


def _ends(session: Session, row: IncidentRow, *, now_ms: int) -> int:
    """How many incidents of the same group have ended of late."""
    query = select(func.count()).select_from(IncidentRow)
    query = query.where(IncidentRow.run_id == row.run_id, IncidentRow.condition == row.condition)
    return session.scalar(query.where(IncidentRow.closed_at_ms > now_ms - FLAPPING_MS)) or 0
