"""`triptych weights pull`, `push` and `rm`: models between this machine, an S3 bucket and where they were published."""

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
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from services import model_cache, model_folder
from services.catalog import known_model
from services.download import Report
from services.errors import ModelError
from services.model_folder import PARTS

STAGE = click.option(
    "--stage", type=click.Choice(list(PARTS)), help="Needed where several stages have the name."
)


@click.command()
@click.argument("name")
@STAGE
@click.option(
    "--from",
    "origin",
    metavar="PLACE",
    default="",
    help="A folder or address with the published files, or a model.",
)
def pull(name: str, stage: str | None, origin: str) -> None:
    """Fetch the model NAME into the cache: from S3 (TRIPTYCH_S3_CACHE), else from where it was published.

    Can be stopped and run again at any time: it goes on where it was. Published files are converted as they come, and
    nothing in them is executed.
    """
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[_ToStderr()])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stage = stage or _stage_of(name)
    with _progress(f"{stage} {name}") as show:
        found = model_cache.fetch(name, stage, origin=origin, show=show)
    took = f", in {found.seconds:.0f} s" if found.seconds else ""
    click.echo(f"{found.folder}: from {found.place}{took}")


@click.command()
@click.argument("model")
@STAGE
@click.option(
    "--to", "bucket", metavar="s3://BUCKET/PREFIX", envvar="TRIPTYCH_S3_CACHE", help="Else TRIPTYCH_S3_CACHE."
)
def push(model: str, stage: str | None, bucket: str | None) -> None:
    """Copy MODEL, a folder or a name that is here, to the S3 cache, from which every machine's `pull` takes it."""
    if not bucket:
        raise click.UsageError("where to? give --to s3://BUCKET/PREFIX or set TRIPTYCH_S3_CACHE")
    folder = Path(model) if Path(model).is_dir() else _here(model, stage or _stage_of(model))
    with _progress(f"to {bucket}") as show:
        place = model_cache.push(folder, bucket, show=show)
    click.echo(place)


@click.command()
@click.argument("name")
@STAGE
def rm(name: str, stage: str | None) -> None:
    """Remove the model NAME from this machine's caches. Built-in models and the S3 cache stay."""
    removed = [path for of in ([stage] if stage else PARTS) for path in model_cache.remove(name, of)]
    if not removed:
        raise ModelError(
            f"no model '{name}' is in this machine's caches; `triptych weights list` shows what is"
        )
    for path in removed:
        click.echo(f"removed {path}")


def _stage_of(name: str) -> str:
    for stage in PARTS:
        if model_cache.find_cached(name, stage):
            return stage
    return known_model(name).stage


def _here(name: str, stage: str) -> Path:
    if found := model_cache.find_cached(name, stage):
        return found.folder
    return model_folder.find_model(name, stage)


@contextmanager
def _progress(what: str) -> Iterator[Report]:
    """A bar with rate and time left on a terminal; nothing where nobody looks."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)
