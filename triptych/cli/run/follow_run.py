"""Follows a run for the command line: shows its progress, saves its images, prints its final state."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from triptych._run_stream import RunStream
from triptych.cli.run.output_folder import OutputFolder
from triptych.cli.terminal.display import Display
from triptych.cli.terminal.json_output import field_name, fields_to_json, message_to_fields
from triptych.client import CallError, Client, ImageLost
from triptych.progress import RunProgress
from triptych.result import STAGE_TITLES, Picture, RunResult
from triptych.terminal_text import echo
from triptych.v1.pipeline_pb2 import Event, Image

# Larger pictures go to their files in chunks and are never whole in memory.
MAX_LOADED_PIXELS = 4_000_000
# Larger ones take long to decode for a terminal.
MAX_SHOWN_PIXELS = 50_000_000


@dataclass(frozen=True)
class Output:
    """Where a run's images go and how its events are shown."""

    display: Display
    as_json: bool = False
    # None: its pictures are not kept.
    album: OutputFolder | None = None
    # Whether they are shown in the terminal when it ends, or waits for a choice; and the names of those that were.
    shows_pictures: bool = False
    is_quiet: bool = False
    shown: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Leaving:
    """Whether a run continues when this command is stopped, and at which gateway ("": ours)."""

    address: str = ""
    goes_on: bool = False

    def words(self, run: RunResult) -> str:
        """How the run stands, and how to continue."""
        made = ", ".join(
            f"{len(pictures)} {STAGE_TITLES[stage]}"
            for stage in STAGE_TITLES
            if (pictures := run.of_stage(stage))
        )
        state = f"{run.name or 'the run'}: {made or 'no pictures yet'}; seed {run.seed}"
        run_id = run.name.removeprefix("runs/")
        at = f" --gateway {self.address}" if self.address else ""
        if not self.address or not run.name:
            return f"Stopped. {state}. The same seed makes the same pictures again."
        if self.goes_on:
            return f"{state}. It goes on; continue with: triptych runs watch {run_id}{at}"
        return f"{state}. It is cancelled; what it made: triptych runs show {run_id}{at} (--detach lets a run go on)"


async def follow(
    client: Client, run: RunStream, progress: RunProgress, output: Output, leaving: Leaving = Leaving()
) -> None:
    """Shows the run's events until it ends or waits for a selection. Raises CallError, but not because the run failed.

    `run` is of the client, which downloads its large images. `leaving` describes what happens to the run if this command is stopped.
    """
    try:
        async with aclosing(run.until_it_rests()) as events:
            async for event in events:
                path = await keep(client, event, output)
                progress.update(event)
                output.display.show(event, progress)
                if output.as_json:
                    echo(to_json(event, path))
                if event.HasField("warning"):
                    output.display.note(f"Warning: {event.warning.message}")
    except asyncio.CancelledError:
        output.display.note(leaving.words(run.result))
        raise
    except CallError:
        # A failed run is reported twice, as its last event and as an error; its images are kept.
        if run.result.state != "failed":
            raise


async def keep(client: Client, event: Event, output: Output) -> Path | None:
    """Writes the image of an event to the folder, and returns its path; None if there is none, or the file is lost."""
    image = event.image_ready.image
    has_file = bool(image.data) or not event.HasField("image_ready")
    if not has_file and client.loads(image):
        output.display.note(f"Note: {lost(image.name)}")
        return None
    if output.album is None:
        return None
    try:
        if has_file:
            return output.album.save(event)
        return await keep_large(client, image, output.album)
    except ImageLost:
        output.display.note(f"Note: {lost(image.name)}")
        return None
    except ValueError as error:
        raise click.ClickException(f"the gateway sent a picture that is none: {error}") from None


async def keep_large(client: Client, image: Image, album: OutputFolder) -> Path:
    """Downloads an image into the folder; a chunk at a time is in memory. Raises ImageLost, CallError, ValueError."""
    path = album.path_of(image)
    downloaded = path.with_name(f".{path.name}.download")
    try:
        await client.save_image(image.name, downloaded)
        return await asyncio.to_thread(album.keep_file, image, downloaded)
    finally:
        downloaded.unlink(missing_ok=True)


def lost(name: str) -> str:
    return f"the gateway does not have the file of {name.rpartition('/')[2]} any more"


def conclude(result: RunResult, progress: RunProgress, output: Output, *, can_go_on: bool = True) -> None:
    """Shows the images, prints where they are and how the run ended; raises ClickException unless all went well."""
    show(result, output)
    if not output.as_json:
        tell_stages(progress, output.album)
        if not output.is_quiet and result.name:
            echo(f"seed: {result.seed}")
    if output.album is not None and output.album.images:
        keep_contact_sheet(output.album, output)
    if result.state == "awaiting_selection":
        if can_go_on:
            output.display.note(how_to_choose(result))
    elif result.state != "succeeded":
        reason = (
            result.error.message if result.error and result.error.message else "the gateway gave no reason"
        )
        raise click.ClickException(f"the run {result.state.replace('_', ' ')}: {reason}")


def keep_contact_sheet(album: OutputFolder, output: Output) -> None:
    """Draws the sheet; the pictures are kept whether or not that can be done."""
    try:
        sheet = album.write_contact_sheet()
    except (OSError, ValueError, MemoryError) as error:
        output.display.note(f"Note: the contact sheet cannot be drawn: {error}")
        return
    if not output.as_json:
        echo(f"all on one sheet: {sheet}")


def tell_stages(progress: RunProgress, album: OutputFolder | None) -> None:
    for name, stage in progress.stages.items():
        if not (stage.finished or stage.num_expected):
            continue
        seconds = stage.elapsed_s(progress.clock())
        echo(f"{name}: {len(stage.finished)} of {stage.num_expected} in {seconds:.1f} s")
        for _, path in album.of_stage(name) if album else []:
            echo(f"  {path}")


def how_to_choose(result: RunResult) -> str:
    """What to type next."""
    run_id = result.name.removeprefix("runs/")
    stage = next((stage for stage in ("refine", "generate") if result.of_stage(stage)), "generate")
    further = "--upscale" if stage == "refine" else "--refine 8"
    return f"The run waits for a choice, such as: triptych runs select {run_id} {stage}-0 {further}"


def show(result: RunResult, output: Output) -> None:
    """Every stage's pictures in the terminal, but those that were shown before."""
    if not output.shows_pictures:
        return
    for stage in STAGE_TITLES:
        found = [load(each, output) for each in result.of_stage(stage) if each.name not in output.shown]
        pictures = [each for each in found if each.data]
        show_in_terminal(pictures, output.display.note)
        output.shown.update(each.name for each in pictures)


def load(picture: Picture, output: Output) -> Picture:
    """With the data of its file, where it came without and is not too large to be drawn."""
    if picture.data or output.album is None or picture.name not in output.album.images:
        return picture
    if picture.width * picture.height > MAX_SHOWN_PIXELS:
        return picture
    return replace(picture, data=output.album.images[picture.name][1].read_bytes())


def show_in_terminal(pictures: Sequence[Picture], note: Callable[[str], None]) -> None:
    """What a terminal cannot show is a note: the run is what it is."""
    from triptych.cli.terminal.terminal_images import Shown, show_pictures

    try:
        show_pictures([Shown(each.data, describe(each)) for each in pictures])
    # A library draws, in a terminal that may do anything.
    except Exception as error:  # noqa: BLE001
        note(f"Note: the pictures cannot be shown here: {error}")


def describe(picture: Picture) -> str:
    """Short enough for below a picture in the terminal."""
    mark = " *" if picture.is_chosen else ""
    score = "" if picture.clip_score is None else f" {picture.clip_score:.3f}"
    return f"{picture.stage}-{picture.index}{score}{mark}"


def decide_show(show: bool | None, *, as_json: bool) -> bool:
    """Whether pictures are shown: where a terminal can, unless the caller has said; never among JSON."""
    if as_json:
        return False
    if show is not None:
        return show
    from triptych.cli.terminal.terminal_images import can_ask_terminal

    return can_ask_terminal()


def to_json(event: Event, path: Path | None) -> str:
    """The event as JSON on one line, without a picture's bytes; `path` is the file that has them."""
    copy = Event()
    copy.CopyFrom(event)
    kind = copy.WhichOneof("kind")
    carrier = kind if kind in ("preview", "image_ready") else None
    if carrier is not None:
        getattr(copy, carrier).image.ClearField("data")
    fields = message_to_fields(copy)
    if carrier is not None:
        image = fields[field_name(copy, carrier)].setdefault("image", {})
        image.pop("data", None)
        if path is not None:
            image["path"] = str(path)
    return fields_to_json(fields)
