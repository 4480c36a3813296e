"""Messages by receiver: each has its own tries and its own end."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_QUEUE = "ix_notifications_delivered_at_ms_due_at_ms"


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("notification_id", _KEY, nullable=False),
        sa.Column("receiver", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("due_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in ("delivered_at_ms", "given_up_at_ms")),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["notification_id"],
            ["notifications.id"],
            name=op.f("fk_deliveries_notification_id_notifications"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("notification_id", "receiver", name=op.f("pk_deliveries")),
    )
    op.create_index(op.f("ix_deliveries_receiver_due_at_ms"), "deliveries", ["receiver", "due_at_ms"])
    op.add_column("notifications", sa.Column("addressed_at_ms", sa.BigInteger(), nullable=True))
    op.execute("UPDATE notifications SET addressed_at_ms = queued_at_ms WHERE delivered_at_ms IS NOT NULL")
    op.drop_index(_QUEUE, "notifications")
    op.create_index(op.f("ix_notifications_addressed_at_ms"), "notifications", ["addressed_at_ms"])
    for name in ("due_at_ms", "attempts", "delivered_at_ms", "error"):
        op.drop_column("notifications", name)


def downgrade() -> None:
    for name in ("due_at_ms", "attempts"):
        op.add_column("notifications", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("notifications", sa.Column("delivered_at_ms", sa.BigInteger(), nullable=True))
    op.add_column("notifications", sa.Column("error", sa.String(), nullable=True))
    op.execute("UPDATE notifications SET due_at_ms = queued_at_ms, delivered_at_ms = addressed_at_ms")
    op.execute(
        "UPDATE notifications SET delivered_at_ms = NULL WHERE id IN (SELECT notification_id FROM deliveries "
        "WHERE delivered_at_ms IS NULL AND given_up_at_ms IS NULL)"
    )
    op.drop_index(op.f("ix_notifications_addressed_at_ms"), "notifications")
    op.create_index(_QUEUE, "notifications", ["delivered_at_ms", "due_at_ms"])
    op.drop_column("notifications", "addressed_at_ms")
    op.drop_table("deliveries")
