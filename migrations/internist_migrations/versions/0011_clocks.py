"""How far the clock of each rank is off, as it has told; attempts are ordered by the server's clock from here on."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("ranks", sa.Column("clock_offset_ms", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("ranks", "clock_offset_ms")
