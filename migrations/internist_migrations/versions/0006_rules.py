"""Rules of the user's own and what is remembered of them; incidents, silences; each open group becomes an incident."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON_OF_ALERTS = ("labels", "annotations", "receivers")
_MOMENTS = ("user", "run_failed", "run_killed")
_NOTIFICATIONS = sa.table(
    "notifications",
    sa.column("id", sa.BigInteger()),
    sa.column("run_id", sa.String()),
    sa.column("condition", sa.String()),
    sa.column("status", sa.String()),
    sa.column("alerts", sa.JSON()),
    sa.column("queued_at_ms", sa.BigInteger()),
)
_INCIDENTS = sa.table(
    "incidents",
    *(sa.column(name, sa.String()) for name in ("run_id", "condition")),
    *(sa.column(name, sa.BigInteger()) for name in ("first_alert", "opened_at_ms", "told_at_ms")),
)


def _keep_open_groups() -> None:
    """What receivers were told that it fires, and not that it is over, goes on as an incident."""
    told = _NOTIFICATIONS.c
    newest = (
        sa.select(sa.func.max(told.id)).where(told.condition.not_in(_MOMENTS)).group_by(told.run_id, told.condition)
    )
    rows = op.get_bind().execute(sa.select(_NOTIFICATIONS).where(told.id.in_(newest), told.status == "firing")).all()
    found = [
        {
            "run_id": row.run_id,
            "condition": row.condition,
            "first_alert": min(row.alerts, default=1),
            "opened_at_ms": row.queued_at_ms,
            "told_at_ms": row.queued_at_ms,
        }
        for row in rows
    ]
    if found:
        op.bulk_insert(_INCIDENTS, found)


def upgrade() -> None:
    op.add_column("runs", sa.Column("thresholds", sa.JSON(), nullable=True))
    for name in _JSON_OF_ALERTS:
        op.add_column("alerts", sa.Column(name, sa.JSON(), nullable=True))
    op.create_table(
        "incidents",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("condition", sa.String(), nullable=False),
        sa.Column("first_alert", sa.BigInteger(), nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("told_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("calm_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("closed_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_incidents_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incidents")),
    )
    op.create_index(op.f("ix_incidents_closed_at_ms"), "incidents", ["closed_at_ms"], unique=False)
    op.create_index(op.f("ix_incidents_run_id_condition"), "incidents", ["run_id", "condition"], unique=False)
    op.create_table(
        "silences",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("matchers", sa.JSON(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_silences")),
    )
    op.create_index(op.f("ix_silences_expires_at_ms"), "silences", ["expires_at_ms"], unique=False)
    op.create_table(
        "rule_sets",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("set_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rule_sets")),
    )
    op.create_table(
        "rule_states",
        sa.Column("attempt_id", _KEY, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_rule_states_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("pk_rule_states")),
    )
    _keep_open_groups()


def downgrade() -> None:
    for table in ("rule_states", "rule_sets", "silences", "incidents"):
        op.drop_table(table)
    with op.batch_alter_table("alerts") as alerts:
        for name in _JSON_OF_ALERTS:
            alerts.drop_column(name)
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("thresholds")
