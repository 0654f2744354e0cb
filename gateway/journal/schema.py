"""The tables of the journal, as its last revision has them. A journal of another VERSION is refused."""

import sqlalchemy as sa

# Raised by one by a revision that older gateways cannot use; they then refuse the journal.
VERSION = 1
# Those in migrations/versions, in order; the last one has the tables below.
REVISIONS = ("0001", "0002", "0003", "0004")

metadata = sa.MetaData()

about = sa.Table(
    "about",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# Who carries out runs, and until when that can be relied on, in milliseconds of the database's clock.
gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("caller", sa.Text, nullable=False),
    # NULL where the caller gave none; `asked` is a digest of what it asked for.
    sa.Column("request_id", sa.Text),
    sa.Column("asked", sa.LargeBinary, nullable=False),
    sa.Column("create_time_ns", sa.BigInteger, nullable=False),
    sa.Column("end_time_ns", sa.BigInteger),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("is_detached", sa.Boolean, nullable=False),
    sa.Column("deadline_ns", sa.BigInteger),
    # The gateway that carries it out; NULL while nobody does.
    sa.Column("owner", sa.Text),
    # The Run message of an idle run, so that a list of runs need not read their events.
    sa.Column("at_rest", sa.LargeBinary),
    # The W3C trace context of the work on it, where there is one.
    sa.Column("traceparent", sa.Text),
    # Of its caller's runs that wait to begin, the one with the lowest begins first; NULL: by the time of creation.
    sa.Column("queue_order", sa.BigInteger),
    # Whether it waits until no other run of its caller is under way.
    sa.Column("in_turn", sa.Boolean),
    sa.UniqueConstraint("caller", "request_id", name="one_run_for_a_request"),
    sa.Index("runs_of_a_caller", "caller", "create_time_ns"),
    sa.Index("runs_by_time", "create_time_ns", "name"),
    sa.Index("runs_by_state", "state"),
)

# The payload is a serialized Event; that of a preview is empty.
events = sa.Table(
    "events",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)

# Every picture that a run has, those that it started from and masks included; the payload is a serialized Image.
images = sa.Table(
    "images",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Index("images_of_a_run", "run"),
    sa.Index("images_by_hash", "sha256"),
)

# Runs that expired, for a while: requests for one get EVENTS_EXPIRED.
expired = sa.Table(
    "expired",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("expired_ms", sa.BigInteger, nullable=False),
    sa.Index("expired_by_time", "expired_ms"),
)

# What was asked of a gateway about a run that another one carries out; that one answers here.
commands = sa.Table(
    "commands",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("asked_ms", sa.BigInteger, nullable=False),
    sa.Column("answer", sa.Text),
    sa.Index("commands_of_a_run", "run"),
)

# Runs that clients follow at another gateway than the owner.
attendances = sa.Table(
    "attendances",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("gateway", sa.Text, primary_key=True),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
)

# Runs whose end is reported to an address, and the next attempt to do so, in milliseconds of the database's clock.
webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("num_attempts", sa.Integer, nullable=False),
    sa.Column("next_ms", sa.BigInteger, nullable=False),
    # The end that was reported last; a run can go on, and end again.
    sa.Column("sent_end_ns", sa.BigInteger),
)
