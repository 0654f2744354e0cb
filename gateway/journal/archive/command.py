"""`triptych journal export`, `import`, `compare` and `prune`: commands on a journal and its store, in any database."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from gateway.journal.archive.reader import check_archive, import_runs
from gateway.journal.archive.writer import export_runs
from gateway.journal.database import JournalUnavailable
from gateway.journal.journal import Journal, open_journal
from gateway.journal.storage_audit import Differences, compare
from gateway.store import open_store
from gateway.store.base import Store
from services.errors import TriptychError
from triptych.cli.terminal.spinner import spinning
from triptych.terminal_text import echo

# A gateway may be about to publish a picture that it has just stored.
MIN_AGE_S = 600.0


def storage_options(command: Callable[..., None]) -> Callable[..., None]:
    """--journal and --store, as a gateway has them."""
    journal = click.option(
        "--journal",
        required=True,
        envvar="TRIPTYCH_JOURNAL",
        metavar="PATH|URL",
        help="A SQLite file whose gateway is stopped, or postgresql://...",
    )
    store = click.option(
        "--store",
        default="",
        envvar="TRIPTYCH_STORE",
        metavar="FOLDER|URL",
        help="Its pictures: a folder, or s3://BUCKET/PREFIX.  [default: pictures beside the journal's file]",
    )
    return journal(store(command))


@click.command("export")
@click.argument("archive", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("runs", nargs=-1)
@storage_options
@click.option("--unfinished", is_flag=True, help="Also runs under way: they go on where they are imported.")
@click.option("--force", is_flag=True, help="Replace ARCHIVE if it is there.")
@click.pass_context
@spinning("exporting")
def export(
    ctx: click.Context,
    archive: Path,
    runs: tuple[str, ...],
    journal: str,
    store: str,
    unfinished: bool,
    force: bool,
) -> None:
    """Write RUNS (such as runs/0123456789abcdef), or all, with their pictures into ARCHIVE, a tar file."""
    if archive.exists() and not force:
        raise TriptychError(f"{archive} is there already; choose another name, or --force")

    places = _located(journal, store)

    async def work() -> bool:
        async with _opened(*places) as (opened, pictures):
            done = await export_runs(opened.reader, pictures, archive, names=runs, with_unfinished=unfinished)
        echo(f"{archive}: {done.num_runs} runs, {done.num_pictures} pictures, {done.num_bytes} bytes")
        if done.num_under_way:
            echo(f"{done.num_under_way} runs are under way and were left out (--unfinished)", err=True)
        _print_missing(done.missing)
        return not done.missing

    if not asyncio.run(work()):
        ctx.exit(1)


@click.command("import")
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@storage_options
@click.option("--dry-run", is_flag=True, help="Validate ARCHIVE and print what it holds.")
@click.pass_context
@spinning("importing")
def import_(ctx: click.Context, archive: Path, journal: str, store: str, dry_run: bool) -> None:
    """Take the runs of ARCHIVE and their pictures into a journal and its store; runs that are there are left alone.

    The whole archive is validated first. An import that was stopped is continued by the same command.
    """

    places = _located(journal, store, must_exist=False)

    async def work() -> bool:
        summary = await asyncio.to_thread(check_archive, archive)
        echo(
            f"{archive}: {summary.num_runs} runs, {summary.num_pictures} pictures, {summary.num_bytes} bytes"
        )
        if not dry_run:
            async with _opened(*places) as (opened, pictures):
                done = await import_runs(archive, opened.database, pictures)
            echo(f"imported {done.num_runs} runs; {len(done.present)} were there already")
            for name in done.without_request_id:
                echo(f"{name}: its request_id is another run's, and was left out", err=True)
        _print_missing(summary.missing)
        return not summary.missing

    if not asyncio.run(work()):
        ctx.exit(1)


@click.command("compare")
@storage_options
@click.pass_context
@spinning("comparing")
def compare_(ctx: click.Context, journal: str, store: str) -> None:
    """Print, run by run, which pictures of the journal the store lacks; exits with 1 when any is missing."""

    places = _located(journal, store)

    async def work() -> bool:
        async with _opened(*places) as (opened, pictures):
            found = await compare(opened.reader, pictures)
        _print_differences(found)
        return not found.missing

    if not asyncio.run(work()):
        ctx.exit(1)


@click.command("prune")
@storage_options
@click.option("--dry-run", is_flag=True, help="Print what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(journal: str, store: str, dry_run: bool, yes: bool) -> None:
    """Delete finished runs that lack pictures, and pictures that no run has; lists them and asks first.

    Requests for such a run get EVENTS_EXPIRED. Other runs that lack pictures are kept; cancel them first.
    """

    places = _located(journal, store)

    async def work() -> None:
        async with _opened(*places) as (opened, pictures):
            with spinning("comparing"):
                found = await compare(opened.reader, pictures)
            _print_differences(found)
            if dry_run or not (found.missing or found.unreferenced):
                return
            if not yes:
                click.confirm(
                    f"delete these {len(found.missing)} runs, and the pictures of no run?", abort=True
                )
            with spinning("deleting"):
                for run in found.missing:
                    hashes = await opened.delete_run(run, expired_at=time.time())
                    if hashes is None:
                        echo(f"{run} has not finished and was kept")
                        continue
                    echo(f"deleted {run}")
                    for sha256 in set(hashes) - await opened.reader.wanted(hashes):
                        await pictures.delete(sha256)
                before = time.time() - MIN_AGE_S
                for one in found.unreferenced:
                    await pictures.delete(one.sha256, put_before=before)
            echo(f"deleted pictures of no run that are older than {MIN_AGE_S / 60:g} minutes")

    asyncio.run(work())


@asynccontextmanager
async def _opened(journal: str, store: str) -> AsyncIterator[tuple[Journal, Store]]:
    """Both, as a gateway opens them. Raises InvalidJournal, InvalidStore or TriptychError."""
    pictures = open_store(store)
    try:
        await pictures.check()
        async with open_journal(journal, f"command-{os.getpid()}") as opened:
            yield opened, pictures
    except JournalUnavailable as error:
        raise TriptychError(f"{error}: {error.cause}") from None
    finally:
        await pictures.close()


def _located(journal: str, store: str, *, must_exist: bool = True) -> tuple[str, str]:
    """Where both are. A typing error must not make a new journal, or take an empty folder for the store."""
    is_file = "://" not in journal
    if not store and not is_file:
        raise TriptychError("a journal in a database needs --store beside it")
    store = store or str(Path(journal).parent / "pictures")
    for what, place in (("journal", journal), ("store", store)):
        if must_exist and "://" not in place and not Path(place).expanduser().exists():
            raise TriptychError(f"there is no {what} {place}")
    return journal, store


def _print_missing(missing: dict[str, list[str]]) -> None:
    for run, hashes in missing.items():
        echo(f"{run}: {len(hashes)} pictures are missing: {', '.join(one[:12] for one in hashes)}", err=True)


def _print_differences(found: Differences) -> None:
    for run, names in found.missing.items():
        short = ", ".join(name.rpartition("/")[2] for name in names)
        echo(f"{run} lacks {len(names)} of {found.num_images[run]} pictures: {short}")
    num_bytes = sum(one.num_bytes for one in found.unreferenced)
    echo(str(found) or "no picture is missing")
    echo(f"{len(found.unreferenced)} pictures ({num_bytes} bytes) belong to no run")


COMMANDS: tuple[Any, ...] = (export, import_, compare_, prune)
