"""How many bytes each block packs, so that retention by bytes need not read tiles."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("blocks", sa.Column("packed_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    blocks = sa.table("blocks", sa.column("id"), sa.column("heads"), sa.column("packed_bytes"))
    tiles = sa.table("tiles", sa.column("block_id"), sa.column("values"))
    of_tiles = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(tiles.c["values"])), 0)).where(
        tiles.c.block_id == blocks.c.id
    )
    op.execute(sa.update(blocks).values(packed_bytes=sa.func.length(blocks.c.heads) + of_tiles.scalar_subquery()))


def downgrade() -> None:
    op.drop_column("blocks", "packed_bytes")
