"""What a judge knows lies apart from where it is, and the newest step of a rank's plans with the rank: rows that are
written at every frame are small."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_RANKS = sa.table("ranks", sa.column("attempt_id"), sa.column("rank"), sa.column("plan_steps", sa.JSON))


def upgrade() -> None:
    op.create_table(
        "judge_checkpoints",
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("order", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_judge_checkpoints_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("pk_judge_checkpoints")),
    )
    op.execute(
        'INSERT INTO judge_checkpoints (attempt_id, step, "order", state) '
        'SELECT attempt_id, judged_step, "order", state FROM judge_states'
    )
    op.drop_column("judge_states", "order")
    op.drop_column("judge_states", "state")
    op.add_column("ranks", sa.Column("plan_steps", sa.JSON(), nullable=True))
    steps: dict[tuple[int, int], dict[str, int]] = {}
    for row in op.get_bind().execute(sa.text("SELECT attempt_id, rank, number, last_step FROM plans")):
        steps.setdefault((row.attempt_id, row.rank), {})[str(row.number)] = row.last_step
    for (attempt_id, rank), of_rank in steps.items():
        is_it = (_RANKS.c.attempt_id == attempt_id) & (_RANKS.c.rank == rank)
        op.execute(_RANKS.update().where(is_it).values(plan_steps=of_rank))
    op.drop_column("plans", "last_step")


def downgrade() -> None:
    op.add_column("plans", sa.Column("last_step", sa.BigInteger(), nullable=False, server_default="-1"))
    bind = op.get_bind()
    for row in bind.execute(sa.text("SELECT attempt_id, rank, plan_steps FROM ranks")).all():
        steps = json.loads(row.plan_steps) if isinstance(row.plan_steps, str) else row.plan_steps
        for number, step in (steps or {}).items():
            bind.execute(
                sa.text(
                    "UPDATE plans SET last_step = :step WHERE attempt_id = :attempt AND rank = :rank AND number = :n"
                ),
                {"step": step, "attempt": row.attempt_id, "rank": row.rank, "n": int(number)},
            )
    op.drop_column("ranks", "plan_steps")
    op.add_column("judge_states", sa.Column("order", sa.LargeBinary(), nullable=False, server_default=sa.text("''")))
    op.add_column("judge_states", sa.Column("state", sa.LargeBinary(), nullable=True))
    for name in ("order", "state"):  # a state that lags behind its step by some is one that has not seen those
        op.execute(
            f'UPDATE judge_states SET "{name}" = (SELECT "{name}" FROM judge_checkpoints '
            "WHERE judge_checkpoints.attempt_id = judge_states.attempt_id) "
            "WHERE attempt_id IN (SELECT attempt_id FROM judge_checkpoints)"
        )
    op.drop_table("judge_checkpoints")
