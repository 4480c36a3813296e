"""Silences as they are kept: set by people, in force until they expire or are taken back."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from internist.schema.alerts import Silence
from internist_server.errors import SilenceNotFound
from internist_server.store.delivery_tables import SilenceRow


def list_silences(session: Session, *, now_ms: int, with_expired: bool = False) -> list[Silence]:
    """Silences that are in force, or all that are kept; the newest first."""
    query = select(SilenceRow).order_by(SilenceRow.id.desc())
    if not with_expired:
        query = query.where(SilenceRow.expires_at_ms > now_ms)
    return [_silence(row) for row in session.scalars(query.limit(1_000))]


def add_silence(
    session: Session, *, matchers: Mapping[str, str], author: str, reason: str, now_ms: int, expires_at_ms: int
) -> Silence:
    """A new silence, in force from now on."""
    row = SilenceRow(
        matchers=dict(matchers), author=author, reason=reason, created_at_ms=now_ms, expires_at_ms=expires_at_ms
    )
    session.add(row)
    session.flush()
    return _silence(row)


def end_silence(session: Session, silence: int, *, now_ms: int) -> Silence:
    """Let a silence expire now; one that has expired stays as it is.

    Raises:
        SilenceNotFound: there is no such silence.
    """
    row = session.get(SilenceRow, silence)
    if row is None:
        raise SilenceNotFound(silence)
    row.expires_at_ms = min(row.expires_at_ms, now_ms)
    session.flush()
    return _silence(row)


def has_expired_between(session: Session, first_ms: int, last_ms: int) -> bool:
    """Whether a silence has expired from the first moment up to the last one."""
    query = select(SilenceRow.id).where(SilenceRow.expires_at_ms >= first_ms, SilenceRow.expires_at_ms <= last_ms)
    return session.scalar(query.limit(1)) is not None


def _silence(row: SilenceRow) -> Silence:
    return Silence(row.id, dict(row.matchers), row.author, row.reason, row.created_at_ms, row.expires_at_ms)
