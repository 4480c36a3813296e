"""The routing table of each attempt: how each parameter is stepped."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("routing", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "routing")
