"""The order in which waiting runs begin, so that a restart keeps it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("runs", sa.Column("queue_order", sa.BigInteger))
    op.add_column("runs", sa.Column("in_turn", sa.Boolean))
