"""The tables of the first release, whose journals do not name a revision."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    # `if_not_exists`: a gateway of that release that was killed while it made them has left some of them.
    op.create_table(
        "about",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "gateways",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "runs",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("asked", sa.LargeBinary, nullable=False),
        sa.Column("create_time_ns", sa.BigInteger, nullable=False),
        sa.Column("end_time_ns", sa.BigInteger),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("is_detached", sa.Boolean, nullable=False),
        sa.Column("deadline_ns", sa.BigInteger),
        sa.Column("owner", sa.Text),
        sa.Column("at_rest", sa.LargeBinary),
        sa.UniqueConstraint("caller", "request_id", name="one_run_for_a_request"),
        if_not_exists=True,
    )
    op.create_table(
        "events",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "images",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "expired",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("expired_ms", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "commands",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("asked_ms", sa.BigInteger, nullable=False),
        sa.Column("answer", sa.Text),
        if_not_exists=True,
    )
    op.create_table(
        "attendances",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("gateway", sa.Text, primary_key=True),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    for name, table, columns in (
        ("runs_of_a_caller", "runs", ["caller", "create_time_ns"]),
        ("runs_by_time", "runs", ["create_time_ns", "name"]),
        ("runs_by_state", "runs", ["state"]),
        ("images_of_a_run", "images", ["run"]),
        ("images_by_hash", "images", ["sha256"]),
        ("expired_by_time", "expired", ["expired_ms"]),
        ("commands_of_a_run", "commands", ["run"]),
    ):
        op.create_index(name, table, columns, if_not_exists=True)
