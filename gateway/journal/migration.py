"""Migrations of the journal with Alembic: makes the tables of a new journal, and brings those of an old one up to date.

All of it happens in the transaction of the caller, under a lock of the database, so a journal is either as it was or as this
code needs it. Revisions are in migrations/versions; migrations/README.md has the rules for new ones.
"""

import logging
from pathlib import Path

import sqlalchemy as sa

from gateway.journal.journal_file import InvalidJournal
from gateway.journal.schema import REVISIONS, VERSION, about, events, metadata, runs
from triptych import __version__

log = logging.getLogger(__name__)

SCRIPTS = Path(__file__).parent / "migrations"
# Of PostgreSQL's advisory locks; any number that no other program uses.
LOCK = 7374726970747963
# A migration that waits for a table makes everybody else wait behind it.
LOCK_TIMEOUT = "10s"

# Alembic's own table. It stands apart from `metadata`, since Alembic writes it.
revisions = sa.Table(
    "alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
)


def prepare(
    connection: sa.Connection, where: str, *, known: tuple[str, ...] = REVISIONS, scripts: Path = SCRIPTS
) -> None:
    """Has the journal ready for this code. `known` are its revisions, the last one the newest.

    Raises InvalidJournal, and then nothing was changed.
    """
    lock_journal(connection)
    names = set(sa.inspect(connection).get_table_names())
    if about.name not in names and {runs.name, events.name} & names:
        raise InvalidJournal(f"{where} has tables of another program; name another one with --journal")
    if about.name not in names:
        create(connection)
        return
    found = _read_about(connection, "version")
    if found not in (None, str(VERSION)):
        writer = _read_about(connection, "written_by")
        raise InvalidJournal(
            f"the journal in {where} is of version {found}, and this gateway writes version {VERSION}; use the "
            f"gateway that wrote it{f' (Triptych {writer})' if writer else ''}, or name another journal with --journal"
        )
    revision = read_revision(connection)
    if revision == known[-1] and found is not None:
        return
    if revision is not None and revision not in known:
        # A revision that old code cannot use raises the version.
        log.warning(
            "the journal in %s was migrated by a newer gateway (revision %s, Triptych %s); this one, Triptych %s, can use it",
            where,
            revision,
            _read_about(connection, "written_by") or "unknown",
            __version__,
            extra={"event": "journal_newer", "revision": revision},
        )
        return
    # Without a version nothing was ever written: a gateway was killed while it made the tables.
    start = (revision or known[0]) if found is not None else None
    _migrate(connection, start, known[-1], scripts)
    _write_about(connection)
    log.info(
        "the journal in %s is migrated from revision %s to %s",
        where,
        start or "none",
        known[-1],
        extra={"event": "journal_migrated", "revision": known[-1]},
    )


def create(connection: sa.Connection) -> None:
    """Makes the tables of a new journal."""
    metadata.create_all(connection)
    _stamp(connection, REVISIONS[-1])
    _write_about(connection)


def lock_journal(connection: sa.Connection) -> None:
    """Waits until nobody else changes the tables; the lock ends with the transaction."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        # Python's sqlite3 begins a transaction by itself only before it writes rows, and so not before it makes a table.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def read_revision(connection: sa.Connection) -> str | None:
    """The revision that the journal names; None for the journals of the first release."""
    if not sa.inspect(connection).has_table(revisions.name):
        return None
    return connection.execute(sa.select(revisions.c.version_num)).scalar_one_or_none()


def _migrate(connection: sa.Connection, start: str | None, target: str, scripts: Path) -> None:
    # Imported late: few journals are old.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    if start is not None and read_revision(connection) is None:
        _stamp(connection, start)
    command.upgrade(config, target)


def _stamp(connection: sa.Connection, revision: str) -> None:
    revisions.create(connection, checkfirst=True)
    connection.execute(sa.insert(revisions).values(version_num=revision))


def _read_about(connection: sa.Connection, key: str) -> str | None:
    return connection.execute(sa.select(about.c.value).where(about.c.key == key)).scalar_one_or_none()


def _write_about(connection: sa.Connection) -> None:
    for key, value in {"version": str(VERSION), "written_by": __version__}.items():
        if not connection.execute(sa.update(about).where(about.c.key == key).values(value=value)).rowcount:
            connection.execute(sa.insert(about).values(key=key, value=value))
