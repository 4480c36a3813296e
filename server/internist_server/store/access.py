"""Tokens, sessions and the audit log as they are kept: of secrets only their hashes."""

from collections.abc import Sequence
from typing import cast

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from internist.schema.access import Act, Scope, Token
from internist_server.callers import Caller
from internist_server.errors import Conflict, TokenNotFound
from internist_server.store.token_tables import ActRow, SessionRow, TokenRow

MAX_TOKENS = 1_000
"""That are shown, the newest."""


def add_token(
    session: Session, *, name: str, secret: str, scopes: Sequence[Scope], project: str | None, by: str, now_ms: int,
    expires_at_ms: int | None,
) -> Token:  # fmt: skip
    """A new token, of which the hash `secret` is kept.

    Raises:
        Conflict: another one that is in force has its name.
    """
    named = select(TokenRow).where(TokenRow.name == name, TokenRow.revoked_at_ms.is_(None))
    if any(_is_in_force(row, now_ms) for row in session.scalars(named)):
        raise Conflict(f"there is a token named {name!r} in force: revoke it first, or choose another name")
    row = TokenRow(
        name=name, secret=secret, scopes=sorted(scopes), project=project, created_by=by, created_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return _token(row)


def list_tokens(session: Session) -> list[Token]:
    """All tokens, those too that are over; the newest first."""
    return [_token(row) for row in session.scalars(select(TokenRow).order_by(TokenRow.id.desc()).limit(MAX_TOKENS))]


def revoke_token(session: Session, token: int, *, now_ms: int) -> Token:
    """Let nobody use a token from now on; its sessions end with it. One that is revoked already stays as it is.

    Raises:
        TokenNotFound: there is no such token.
    """
    row = session.get(TokenRow, token)
    if row is None:
        raise TokenNotFound(token)
    row.revoked_at_ms = row.revoked_at_ms or now_ms
    session.execute(delete(SessionRow).where(SessionRow.token == row.secret))
    session.flush()
    return _token(row)


def find_caller(session: Session, secret: str, *, now_ms: int) -> Caller | None:
    """Who presents a token of this hash; None: nobody may."""
    row = session.scalar(select(TokenRow).where(TokenRow.secret == secret))
    if row is None or not _is_in_force(row, now_ms):
        return None
    scopes = frozenset(cast("list[Scope]", row.scopes))
    return Caller(row.name, scopes, row.project, row.secret, row.expires_at_ms)


def note_use(session: Session, secret: str, *, now_ms: int) -> None:
    """Keep when a token was last used."""
    session.execute(update(TokenRow).where(TokenRow.secret == secret).values(last_used_ms=now_ms))


def add_session(session: Session, key: str, *, token: str, now_ms: int, expires_at_ms: int) -> None:
    """A session of a browser, by hashes; sessions that are over leave."""
    session.execute(delete(SessionRow).where(SessionRow.expires_at_ms <= now_ms))
    session.add(SessionRow(key=key, token=token, created_at_ms=now_ms, expires_at_ms=expires_at_ms))
    session.flush()


def find_session(session: Session, key: str, *, now_ms: int) -> str | None:
    """The hash of the token by which a session was begun; None: there is none, or it is over."""
    found = select(SessionRow.token).where(SessionRow.key == key, SessionRow.expires_at_ms > now_ms)
    return session.scalar(found)


def end_session(session: Session, key: str) -> None:
    """A browser signs out."""
    session.execute(delete(SessionRow).where(SessionRow.key == key))


def add_act(session: Session, act: Act) -> None:
    """Keep what somebody did."""
    session.add(
        ActRow(at_ms=act.at_ms, actor=act.actor, address=act.address, act=act.act, target=act.target, detail=act.detail)
    )
    session.flush()


def list_acts(session: Session, *, limit: int, offset: int = 0) -> list[Act]:
    """What was done, the newest first."""
    query = select(ActRow).order_by(ActRow.id.desc()).limit(limit).offset(offset)
    return [Act(row.at_ms, row.actor, row.address, row.act, row.target, row.detail) for row in session.scalars(query)]


def _is_in_force(row: TokenRow, now_ms: int) -> bool:
    return row.revoked_at_ms is None and (row.expires_at_ms is None or row.expires_at_ms > now_ms)


def _token(row: TokenRow) -> Token:
    return Token(
        row.id, row.name, tuple(cast("list[Scope]", row.scopes)), row.project, row.created_by, row.created_at_ms,
        row.expires_at_ms, row.last_used_ms, row.revoked_at_ms,
    )  # fmt: skip
