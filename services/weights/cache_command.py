"""`triptych weights pull`, `push` and `rm`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from services.errors import ModelError
from services.weights import cache
from services.weights.catalog import known_model
from services.weights.download import Report
from services.weights.model_folder import BUILT_IN_FOLDER, read_manifest
from triptych.stages import WORKER_NAMES
from triptych.terminal_text import echo

# More bytes at once than ever arrive or are sent in one piece.
MAX_PIECE_BYTES = 12 * 2**20
STAGE = click.option(
    "--stage",
    type=click.Choice(list(WORKER_NAMES)),
    help="Needed for a model of your own, or where several stages have the name.",
)


@click.command()
@click.argument("name")
@STAGE
@click.option(
    "--from",
    "origin",
    metavar="PLACE",
    default="",
    show_default=False,
    help="A folder or address (https://, hf://, s3://) with the published files, or with a model.",
)
@click.option("--half", is_flag=True, help="Keep float16 of published files in float32: half of the disk.")
def pull(name: str, stage: str | None, origin: str, *, half: bool) -> None:
    """Fetch the model NAME into the cache: from S3 (TRIPTYCH_S3_CACHE), else from where it was published.

    Can be stopped and run again at any time: it goes on where it was. Published files are converted as they come, and
    nothing in them is executed. `triptych weights list` shows the names.
    """
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[_ToStderr()])
    for library in ("httpx", "botocore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    stage = stage or _stage_of(name)
    try:
        with _progress(f"{stage} {name}") as show:
            found = cache.fetch(name, stage, origin=origin, half=half, show=show)
    except KeyboardInterrupt:
        echo("stopped; what has arrived is kept, run the command again to go on", err=True)
        raise
    took = f", in {found.seconds:.0f} s" if found.seconds else ""
    echo(f"{found.folder}: from {found.place}{took}")
    manifest = read_manifest(found.folder)
    if manifest.licence:
        echo(f"licence: {manifest.licence}")
    if manifest.notices:
        echo(manifest.notices)


@click.command()
@click.argument("model")
@STAGE
@click.option(
    "--to", "bucket", metavar="s3://BUCKET/PREFIX", envvar="TRIPTYCH_S3_CACHE", help="Else TRIPTYCH_S3_CACHE."
)
@click.option(
    "--force",
    is_flag=True,
    help="Send files that seem to be there, too: when one of them turned out to be damaged.",
)
def push(model: str, stage: str | None, bucket: str | None, *, force: bool) -> None:
    """Copy MODEL, a folder or a name that is here, to the S3 cache, from which every machine's `pull` takes it."""
    if not bucket:
        raise click.UsageError("where to? give --to s3://BUCKET/PREFIX or set TRIPTYCH_S3_CACHE")
    folder = Path(model) if Path(model).is_dir() else folder_of(model, stage)
    with _progress(f"to {bucket}") as show:
        place = cache.push(folder, bucket, force=force, show=show)
    echo(place)


@click.command()
@click.argument("name")
@click.option("--stage", type=click.Choice(list(WORKER_NAMES)), help="Only this stage's; else every stage's.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def rm(name: str, stage: str | None, *, dry_run: bool) -> None:
    """Remove the model NAME from this machine's caches. Built-in models and the S3 cache stay.

    Only what `triptych weights pull` has made is removed: a path, a link or a folder of yours is refused.
    """
    stages = [stage] if stage else list(WORKER_NAMES)
    # All of it is found, and may be refused, before any is removed.
    found = [path for of in stages for path in cache.removable(name, of)]
    for path in found:
        num_bytes = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        echo(f"{'would remove' if dry_run else 'removing'} {path} ({num_bytes / 10**6:,.1f} MB)", err=True)
    if dry_run and found:
        return
    removed = [path for of in stages for path in cache.remove(name, of)]
    if not removed:
        raise ModelError(
            f"no model '{name}' is in this machine's caches; `triptych weights list` shows what is"
        )
    for path in removed:
        echo(f"removed {path}")


def _stage_of(name: str) -> str:
    for stage in WORKER_NAMES:
        if cache.find_cached(name, stage):
            return stage
        if (BUILT_IN_FOLDER / stage / "models" / name).is_dir():
            raise ModelError(f"{name} ships with Triptych: there is nothing to pull")
    try:
        return known_model(name).stage
    except ModelError as error:
        raise ModelError(f"{error}; for a model of your own in the S3 cache say its --stage") from None


def folder_of(name: str, stage: str | None = None) -> Path:
    """Where a model that is on this machine lies; raises ModelError for none, and for several of that name."""
    found = {of: folder for of, here, folder in reversed([*cache.local_models()]) if here == name}
    stages = [stage] if stage else list(found)
    if len(stages) > 1:
        raise ModelError(
            f"the {', the '.join(reversed(stages))} each have a model '{name}': say which with --stage, or name its folder"
        )
    if not stages or stages[0] not in found:
        raise ModelError(
            f"no {f'{stage} ' if stage else ''}model '{name}' is on this machine: expected a folder, or a name that "
            "`triptych weights list` shows with one; `triptych weights pull` fetches it"
        )
    return found[stages[0]]


@contextmanager
def _progress(what: str) -> Iterator[Report]:
    """A bar with rate and time left on a terminal; nothing where nobody looks."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield report_to(bar, bar.add_task(what, total=None))


def report_to(bar: Progress, task: TaskID) -> Report:
    """Moves a bar; what was there before counts for the bar and not for the rate."""
    before = 0

    def show(done: int, total: int) -> None:
        nonlocal before
        if done - before > MAX_PIECE_BYTES:
            bar.reset(task, completed=done, total=total)
        else:
            bar.update(task, completed=done, total=total)
        before = done

    return show


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record), err=True)
