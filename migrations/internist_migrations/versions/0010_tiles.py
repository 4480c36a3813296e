"""Tiles: what becomes of frames and judgements once they are settled."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for name, columns in (
        ("blocks", ("rank", "plan", "first_step", "last_step", "newest_ms", "count")),
        ("judged_blocks", ("first_step", "last_step", "count")),
    ):
        op.create_table(
            name,
            sa.Column("id", _KEY, nullable=False),
            sa.Column("attempt_id", _KEY, nullable=False),
            *(sa.Column(column, sa.BigInteger(), nullable=False) for column in columns),
            sa.Column("heads", sa.LargeBinary(), nullable=False),
            sa.ForeignKeyConstraint(
                ["attempt_id"], ["attempts.id"], name=op.f(f"fk_{name}_attempt_id_attempts"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        )
        op.create_index(op.f(f"ix_{name}_attempt_id_last_step"), name, ["attempt_id", "last_step"])
    for name, blocks, parts in (
        ("tiles", "blocks", ("values",)),
        ("judged_tiles", "judged_blocks", ("ratios", "basis")),
    ):
        op.create_table(
            name,
            sa.Column("block_id", _KEY, nullable=False),
            sa.Column("series_id", sa.BigInteger(), nullable=False),
            *(sa.Column(part, sa.LargeBinary(), nullable=False) for part in parts),
            sa.ForeignKeyConstraint(
                ["block_id"], [f"{blocks}.id"], name=op.f(f"fk_{name}_block_id_{blocks}"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("block_id", "series_id", name=op.f(f"pk_{name}")),
            sqlite_with_rowid=False,
        )
    op.create_table(
        "summaries",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("attempt_id", _KEY, nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("first_step", "last_step", "count", "width")),
        *(sa.Column(name, sa.LargeBinary(), nullable=False) for name in ("bases", "series", "spans")),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_summaries_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_summaries")),
    )
    op.create_index(
        op.f("ix_summaries_attempt_id_metric_last_step"), "summaries", ["attempt_id", "metric", "last_step"]
    )
    op.add_column("attempts", sa.Column("fine_from", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("ranks", sa.Column("loose", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE ranks SET loose = (SELECT count(*) FROM frames "
        "WHERE frames.attempt_id = ranks.attempt_id AND frames.rank = ranks.rank)"
    )


def downgrade() -> None:
    if op.get_bind().execute(sa.text("SELECT 1 FROM blocks LIMIT 1")).first():
        raise RuntimeError(
            "points of this database lie in tiles, which earlier versions cannot read: "
            "restore a backup from before the upgrade instead"
        )
    op.drop_column("ranks", "loose")
    op.drop_column("attempts", "fine_from")
    for name in ("summaries", "judged_tiles", "tiles", "judged_blocks", "blocks"):
        op.drop_table(name)
