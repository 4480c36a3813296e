"""By how much each rank's own costs ask to thin sampling."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("ranks", sa.Column("powers", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("ranks", "powers")
