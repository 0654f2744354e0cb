"""The trace that a run belongs to, so that a gateway that continues it can link to it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("runs", sa.Column("traceparent", sa.Text))
