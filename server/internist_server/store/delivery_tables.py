"""Tables of what receivers are told: incidents, silences, messages and their ways."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from internist_server.store.base import KEY, Base


class IncidentRow(Base):
    """What receivers were told of one run and condition, from the message that it began to the one that it is over."""

    __tablename__ = "incidents"
    __table_args__ = (Index(None, "closed_at_ms"), Index(None, "run_id", "condition"))

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    condition: Mapped[str]
    """Or the rule, where a rule of the user's own is told of."""
    first_alert: Mapped[int]
    opened_at_ms: Mapped[int]
    told_at_ms: Mapped[int]
    calm_since_ms: Mapped[int | None]
    """Since when none of its alerts fires; None while one does."""
    closed_at_ms: Mapped[int | None]


class SilenceRow(Base):
    """A promise not to notify about matching alerts until it expires."""

    __tablename__ = "silences"

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    matchers: Mapped[dict[str, Any]]
    """Globs by label; all of them must match."""
    author: Mapped[str]
    reason: Mapped[str]
    created_at_ms: Mapped[int]
    expires_at_ms: Mapped[int] = mapped_column(index=True)


class NotificationRow(Base):
    """A message to receivers, from the commit that queued it."""

    __tablename__ = "notifications"
    __table_args__ = (Index(None, "run_id", "condition"),)

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    condition: Mapped[str]
    status: Mapped[str]
    alerts: Mapped[list[Any]]
    """Ids of its members."""
    queued_at_ms: Mapped[int]
    addressed_at_ms: Mapped[int | None] = mapped_column(index=True)
    """When it got its deliveries; None: nobody has looked yet whom it goes to."""


class DeliveryRow(Base):
    """A message on its way to one receiver, until it is delivered or given up."""

    __tablename__ = "deliveries"
    __table_args__ = (Index(None, "receiver", "due_at_ms"),)

    notification_id: Mapped[int] = mapped_column(
        KEY, ForeignKey("notifications.id", ondelete="CASCADE"), primary_key=True
    )
    receiver: Mapped[str] = mapped_column(String(64), primary_key=True)
    """A digest of its address, which may hold secrets."""
    name: Mapped[str]
    """What people call it."""
    due_at_ms: Mapped[int]
    attempts: Mapped[int] = mapped_column(default=0)
    delivered_at_ms: Mapped[int | None]
    given_up_at_ms: Mapped[int | None]
    error: Mapped[str | None]
    """Why the last try failed."""
