"""`triptych journal`: checks and repairs the SQLite file of a stopped gateway; archive/command.py has its other commands."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import click
import sqlalchemy as sa

from gateway.journal import migration, schema
from gateway.journal.archive.command import COMMANDS
from gateway.journal.journal_file import JournalFile
from services.errors import TriptychError
from triptych.cli.terminal.spinner import spinning
from triptych.terminal_text import echo

journal_argument = click.argument("journal", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group(no_args_is_help=True)
def journal() -> None:
    """Check and repair a SQLite journal; export and import runs; compare a journal with its store."""


for _command in COMMANDS:
    journal.add_command(_command)


@journal.command()
@journal_argument
@click.pass_context
@spinning("checking")
def check(ctx: click.Context, journal: Path) -> None:
    """Read all of JOURNAL, print its version and what it holds; exits with 1 when it is damaged."""
    file = JournalFile(journal)
    try:
        problems = find_problems(journal)
        version, counts = read_summary(journal)
    finally:
        file.close()
    echo(
        f"{journal}: version {version or 'unknown'}, revision {read_revision(journal) or 'none'}, "
        + ", ".join(f"{n} {name}" for name, n in counts.items())
    )
    for problem in problems:
        echo(problem, err=True)
    if problems:
        echo("the journal is damaged: `triptych journal repair` saves what can be read", err=True)
        ctx.exit(1)


@journal.command()
@journal_argument
@spinning("repairing")
def repair(journal: Path) -> None:
    """Copy every row of JOURNAL that can be read into a new file, which takes its place; the damaged one is kept."""
    file = JournalFile(journal)
    try:
        if not find_problems(journal):
            echo(f"{journal} is not damaged: nothing was changed")
            return
        repaired = journal.with_name(f".{journal.name}.repaired")
        repaired.unlink(missing_ok=True)
        saved = copy_readable(journal, repaired)
        damaged = journal.with_name(
            f"{journal.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        )
        for suffix in ("-wal", "-shm"):
            beside = journal.with_name(journal.name + suffix)
            if beside.exists():
                beside.rename(damaged.with_name(damaged.name + suffix))
        journal.rename(damaged)
        repaired.rename(journal)
    finally:
        file.close()
    echo(
        f"{journal}: "
        + ", ".join(f"{n} {name}" for name, n in saved.items())
        + f"; the damaged file is {damaged}"
    )


def find_problems(path: Path) -> list[str]:
    """What SQLite finds wrong with the file, at most twenty lines."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as connection:
            rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [str(text) for (text,) in rows if text != "ok"]


def read_summary(path: Path) -> tuple[str, dict[str, int]]:
    """The version, and how many rows each table has; of what cannot be read, nothing."""
    version, counts = "", {}
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as connection:
        for table in schema.metadata.sorted_tables:
            try:
                (counts[table.name],) = connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()  # noqa: S608 - our own names
                if table is schema.about:
                    found = connection.execute("SELECT value FROM about WHERE key = 'version'").fetchone()
                    version = found[0] if found else ""
            except sqlite3.DatabaseError:
                continue
    return version, counts


def read_revision(path: Path) -> str:
    """The revision of the tables; "" where there is none, or it cannot be read."""
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError:
            return ""
    return found[0] if found else ""


def copy_readable(damaged: Path, to: Path) -> dict[str, int]:
    """Copies the rows that can be read, from both ends of each table; returns how many of each.

    Raises TriptychError for a journal of a newer gateway, whose tables may have more than is copied.
    """
    revision = read_revision(damaged)
    if revision and revision not in schema.REVISIONS:
        raise TriptychError(
            f"{damaged} was migrated by a newer gateway (revision {revision}): repair it with that release"
        )
    saved = {}
    engine = sa.create_engine(f"sqlite:///{to}")
    with engine.begin() as connection:
        migration.create(connection)
    engine.dispose()
    to.chmod(0o600)
    with (
        closing(sqlite3.connect(f"file:{damaged}?mode=rw", uri=True)) as source,
        closing(sqlite3.connect(to)) as target,
        target,
    ):
        for table in schema.metadata.sorted_tables:
            columns = _columns_of(source, table)
            names = ", ".join(columns)
            marks = ", ".join("?" for _ in columns)
            insert = f"INSERT OR IGNORE INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608 - our own names
            for order in ("ASC", "DESC"):
                try:
                    select = f"SELECT {names} FROM {table.name} NOT INDEXED ORDER BY rowid {order}"  # noqa: S608 - our own names
                    rows = source.execute(select)
                    while (row := rows.fetchone()) is not None:
                        target.execute(insert, row)
                except sqlite3.DatabaseError:
                    continue
                break
            (saved[table.name],) = target.execute(f"SELECT count(*) FROM {table.name}").fetchone()  # noqa: S608 - our own names
        if not saved["runs"] and not saved["events"]:
            raise TriptychError(f"nothing of {damaged} can be read: restore it from a backup")
    return saved


def _columns_of(source: sqlite3.Connection, table: sa.Table) -> list[str]:
    """Those of the table that the damaged journal, which may be of an older revision, has as well."""
    try:
        found = {name for _, name, *_ in source.execute(f"PRAGMA table_info({table.name})")}
    except sqlite3.DatabaseError:
        found = set()
    return [column.name for column in table.columns if column.name in found] or table.columns.keys()
