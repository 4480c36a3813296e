"""Bands as they were judged, what scheduled values were divided by; frames that were refused, and pauses, by rank; each
rule on the run is a condition of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bands",
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("bands", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_bands_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", "step", name=op.f("pk_bands")),
    )
    with op.batch_alter_table("judgements") as judgements:
        judgements.add_column(sa.Column("divisor", sa.String(length=32), nullable=True))
    with op.batch_alter_table("ranks") as ranks:
        ranks.add_column(sa.Column("refused", sa.BigInteger(), nullable=False, server_default="0"))
        ranks.add_column(sa.Column("refusal", sa.String(), nullable=True))
        ranks.add_column(sa.Column("pause", sa.String(), nullable=True))
    with op.batch_alter_table("ranks") as ranks:
        ranks.alter_column("refused", existing_type=sa.BigInteger(), server_default=None)
    op.execute("UPDATE alerts SET condition = rule WHERE condition = 'run'")
    op.execute(
        "UPDATE notifications SET condition = 'run_lost' WHERE condition = 'run'"
    )  # either of the two there were


def downgrade() -> None:
    op.execute("UPDATE alerts SET condition = 'run' WHERE condition IN ('run_lost', 'run_stalled')")
    op.execute("UPDATE notifications SET condition = 'run' WHERE condition IN ('run_lost', 'run_stalled')")
    with op.batch_alter_table("ranks") as ranks:
        ranks.drop_column("pause")
        ranks.drop_column("refusal")
        ranks.drop_column("refused")
    with op.batch_alter_table("judgements") as judgements:
        judgements.drop_column("divisor")
    op.drop_table("bands")
