"""Tables of who may come in, and of what those did who administer the server."""

from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from internist_server.store.base import KEY, Base


class TokenRow(Base):
    """A token that was made, and what it is for."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    """What its bearer does is told of under it. Of tokens in force only one has it."""
    secret: Mapped[str] = mapped_column(String(64), unique=True)
    """The hash of what is presented."""
    scopes: Mapped[list[Any]]
    project: Mapped[str | None]
    created_by: Mapped[str]
    created_at_ms: Mapped[int]
    expires_at_ms: Mapped[int | None]
    last_used_ms: Mapped[int | None]
    revoked_at_ms: Mapped[int | None]


class SessionRow(Base):
    """A browser that signed in with a token, which may what that may, for as long as that may."""

    __tablename__ = "sessions"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The hash of what its cookie holds."""
    token: Mapped[str] = mapped_column(String(64), index=True)
    """The hash of the token."""
    created_at_ms: Mapped[int]
    expires_at_ms: Mapped[int] = mapped_column(index=True)


class ActRow(Base):
    """What somebody did who administers the server; such rows are only added."""

    __tablename__ = "acts"

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    at_ms: Mapped[int] = mapped_column(index=True)
    actor: Mapped[str]
    address: Mapped[str]
    act: Mapped[str]
    target: Mapped[str]
    detail: Mapped[str]
