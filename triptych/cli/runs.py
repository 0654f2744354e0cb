"""`triptych runs`: list, show, watch, select, move, cancel and delete runs."""

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from triptych._run_stream import RunStream
from triptych.cli.credential_options import ADDRESS, credential_options, patience
from triptych.cli.run.follow_run import (
    MAX_LOADED_PIXELS,
    Leaving,
    Output,
    conclude,
    decide_show,
    follow,
    keep_large,
    load,
    lost,
    show_in_terminal,
)
from triptych.cli.run.output_folder import SUFFIXES, OutputFolder
from triptych.cli.terminal.display import choose_display
from triptych.cli.terminal.json_output import message_to_json
from triptych.cli.terminal.run_tables import print_run, print_runs
from triptych.cli.terminal.signals import run_in_foreground
from triptych.client import Client, ImageLost, NotFound
from triptych.credentials import Credentials
from triptych.progress import RunProgress
from triptych.result import Picture
from triptych.terminal_text import echo, escape
from triptych.v1.pipeline_pb2 import Image, Run, RunSpec

DEFAULT_GATEWAY = "127.0.0.1:50050"
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(no_args_is_help=True)
def runs() -> None:
    """List, show, watch, go on with, move, cancel and delete the runs of a gateway.

    RUN is a run's name as `list` has it; IMAGE is an image's, such as generate-2 or refine-0.
    """


def with_client(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Gives a command the options of a gateway and --json, and runs it with a `client`."""

    @wraps(command)
    def run_it(*, gateway: str, credentials: Credentials, **values: Any) -> None:
        async def with_client() -> None:
            async with Client(
                gateway,
                **vars(credentials),
                backoff=patience(gateway),
                max_loaded_pixels=MAX_LOADED_PIXELS,
            ) as client:
                try:
                    await command(client=client, **values)
                except NotFound as error:
                    raise click.ClickException(
                        f"{error}; `triptych runs list` says which there are"
                    ) from None

        run_in_foreground(with_client())

    decorated = credential_options(run_it)
    decorated = click.option(
        "--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print JSON, one message a line."
    )(decorated)
    return click.option(
        "--gateway",
        metavar="HOST:PORT",
        type=ADDRESS,
        default=DEFAULT_GATEWAY,
        help="The gateway that has the runs.",
    )(decorated)


def with_output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --out, --format and --show."""
    command = click.option(
        "--format",
        "file_format",
        type=click.Choice(list(SUFFIXES)),
        default="png",
        help="Of the pictures in --out.",
    )(command)
    command = click.option(
        "--show/--no-show", default=None, help="Show the pictures here.  [default: where the terminal can]"
    )(command)
    return click.option("--out", "-o", type=FOLDER, help="Write the pictures to this folder.")(command)


def full_name(run: str) -> str:
    return run if run.startswith("runs/") else f"runs/{run}"


def full_image_name(run: str, image: str) -> str:
    return image if image.startswith("runs/") else f"{full_name(run)}/images/{image}"


@runs.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, help="How many, newest first.")
@with_client
async def list_runs(client: Client, limit: int, as_json: bool) -> None:
    """List the newest runs."""
    found: list[Run] = []
    async for run in client.list_runs():
        found.append(run)
        if len(found) == limit:
            break
    if as_json:
        for run in found:
            print_json(run)
    elif not found:
        echo(f"no runs at {client.address}", err=True)
    else:
        print_runs(found)


@runs.command()
@click.argument("run")
@with_output_options
@with_client
async def show(
    client: Client, run: str, out: Path | None, file_format: str, show: bool | None, as_json: bool
) -> None:
    """Show the state of a run, and its images as a tree."""
    found = await client.get_run(full_name(run))
    if as_json:
        print_json(found)
    else:
        print_run(found)
    shows_pictures = decide_show(show, as_json=as_json)
    if not (out or shows_pictures):
        return
    with ExitStack() as stack:
        # What is only shown is kept for as long as that takes.
        folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="triptych-")))
        album = OutputFolder(
            folder, found.spec.prompt, run=found.name, file_format=file_format if out else "png"
        )
        images = [image for image in found.images if await download(client, image, album)]
        if out is not None and images and not as_json:
            echo(f"all on one sheet: {album.write_contact_sheet()}")
        if shows_pictures:
            output = Output(choose_display(as_json=False, is_quiet=True), album=album)
            pictures = [load(Picture.of(image), output) for image in images]
            show_in_terminal([one for one in pictures if one.data], partial(echo, err=True))


async def download(client: Client, image: Image, album: OutputFolder) -> bool:
    """Keeps an image in the folder; False, with a note, where the gateway does not have its file any more."""
    try:
        await keep_large(client, image, album)
    except ImageLost:
        echo(f"Note: {lost(image.name)}", err=True)
        return False
    return True


@runs.command()
@click.argument("run")
@click.option(
    "--after", type=click.IntRange(0, 2**63 - 1), default=0, help="Start after the event with this number."
)
@with_output_options
@with_client
async def watch(
    client: Client,
    run: str,
    after: int,
    out: Path | None,
    file_format: str,
    show: bool | None,
    as_json: bool,
) -> None:
    """Follow a run from its first event to its end, or to where it waits for a choice; leaving changes nothing."""
    found = await client.get_run(full_name(run))
    watched = client.watch(found.name, after_sequence=after)
    album = keep_in(out, found, file_format)
    await follow_to_the_end(
        client, watched, found.spec, album, Leaving(client.address, goes_on=True), show=show, as_json=as_json
    )


@runs.command()
@click.argument("run")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--refine", type=click.IntRange(1, 2**31 - 1), help="Make so many variations of each.")
@click.option("--upscale", is_flag=True, help="Upscale each.")
@click.option("--no-wait", is_flag=True, help="Return when the gateway has accepted it.")
@with_output_options
@with_client
async def select(
    client: Client,
    run: str,
    images: tuple[str, ...],
    refine: int | None,
    upscale: bool,
    no_wait: bool,
    out: Path | None,
    file_format: str,
    show: bool | None,
    as_json: bool,
) -> None:
    """Take images of a run further, or back: to more variations, or to an upscaled picture."""
    if (refine is None) != upscale:
        raise click.UsageError("expected one of --refine NUMBER and --upscale")
    found = await client.get_run(full_name(run))
    selected = client.select(
        [full_image_name(run, image) for image in images], refine=refine, upscale=upscale
    )
    if no_wait:
        async with selected:
            await anext(aiter(selected))
        echo(escape(found.name), err=as_json)
        return
    # Its first event has what it makes.
    asked = RunSpec(prompt=found.spec.prompt)
    album = keep_in(out, found, file_format)
    await follow_to_the_end(
        client, selected, asked, album, Leaving(client.address, goes_on=True), show=show, as_json=as_json
    )


@runs.command()
@click.argument("run")
@click.argument("images", metavar="[IMAGE]...", nargs=-1)
@with_client
async def cancel(client: Client, run: str, images: tuple[str, ...], as_json: bool) -> None:
    """Stop a run, or only these of its images; a second time changes nothing."""
    cancelled = await client.cancel_run(full_name(run), [full_image_name(run, image) for image in images])
    if as_json:
        print_json(cancelled)


@runs.command()
@click.argument("run")
@click.option("--before", metavar="RUN", default="", help="It begins before this waiting run of yours.")
@click.option("--after", metavar="RUN", default="", help="It begins after this one.")
@click.option("--now", is_flag=True, help="It begins without waiting for your other runs.")
@with_client
async def move(client: Client, run: str, before: str, after: str, now: bool, as_json: bool) -> None:
    """Move a run that waits to begin; without an option it is the next."""
    if bool(before) + bool(after) + now > 1:
        raise click.UsageError("expected one of --before, --after and --now")
    anchors = {name: full_name(other) for name, other in (("before", before), ("after", after)) if other}
    moved = await client.move_run(full_name(run), **anchors, now=now)
    if as_json:
        print_json(moved)


@runs.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@with_client
async def rm(client: Client, names: tuple[str, ...], as_json: bool) -> None:
    """Delete finished runs and the pictures that no other run has."""
    for name in names:
        await client.delete_run(full_name(name))
        if as_json:
            print_json(Run(name=full_name(name)))


def keep_in(out: Path | None, run: Run, file_format: str) -> OutputFolder | None:
    if out is None:
        return None
    return OutputFolder(out, run.spec.prompt, run=run.name, file_format=file_format)


async def follow_to_the_end(
    client: Client,
    run: RunStream,
    spec: RunSpec,
    album: OutputFolder | None,
    leaving: Leaving,
    *,
    show: bool | None,
    as_json: bool,
) -> None:
    output = Output(choose_display(as_json=as_json), as_json, album, decide_show(show, as_json=as_json))
    progress = RunProgress(spec)
    with output.display:
        await follow(client, run, progress, output, leaving)
    conclude(run.result, progress, output)


def print_json(run: Run) -> None:
    echo(message_to_json(run))
