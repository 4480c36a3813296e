"""Coverage by metric family: the family is a part of the key. Rows from before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = "pk_coverage"
SUBJECT = ["attempt_id", "rank", "kind", "subject"]


def upgrade() -> None:
    with op.batch_alter_table("coverage") as coverage:
        coverage.add_column(sa.Column("family", sa.String(length=512), nullable=False, server_default=""))
        coverage.drop_constraint(NAME, type_="primary")
        coverage.create_primary_key(NAME, [*SUBJECT, "family"])
    with op.batch_alter_table("coverage") as coverage:
        coverage.alter_column("family", existing_type=sa.String(length=512), server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM coverage WHERE family <> ''")  # several of one subject would share a key
    with op.batch_alter_table("coverage") as coverage:
        coverage.drop_constraint(NAME, type_="primary")
        coverage.create_primary_key(NAME, SUBJECT)
        coverage.drop_column("family")
