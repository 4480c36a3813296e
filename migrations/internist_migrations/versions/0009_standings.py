"""How each run stands, in a row of its own: the cursor moves there, and every run is looked after once."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_WHOLE = ("attempt_id", "contact_ms", "reached", "last_step", "last_frame_at_ms", "heartbeat_at_ms")
_COUNTS = ("violated", "drifting", "series")
_TEXTS = ("state", "reason", "verdict", "sentence")
_NUMBERS = ("step_ms", "loss", "learning_rate", "overhead", "coverage")


def upgrade() -> None:
    op.create_table(
        "standings",
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("next_check_ms", sa.BigInteger(), nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in (*_WHOLE, *_COUNTS)),
        *(sa.Column(name, sa.String(), nullable=True) for name in _TEXTS),
        *(sa.Column(name, sa.String(length=32), nullable=True) for name in _NUMBERS),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_standings_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_standings")),
    )
    op.create_index(op.f("ix_standings_next_check_ms"), "standings", ["next_check_ms"])
    op.execute("INSERT INTO standings (run_id, cursor, next_check_ms) SELECT id, cursor, 0 FROM runs")
    op.drop_column("runs", "cursor")


def downgrade() -> None:
    op.add_column("runs", sa.Column("cursor", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE runs SET cursor = (SELECT cursor FROM standings WHERE standings.run_id = runs.id)")
    op.drop_index(op.f("ix_standings_next_check_ms"), "standings")
    op.drop_table("standings")
