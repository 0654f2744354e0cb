"""`triptych run`: a prompt becomes pictures on disk, through a gateway of its own or one that runs already."""

import json
import secrets
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format

from triptych.album import Album, slug
from triptych.client import CallError, Client, Unreachable
from triptych.credentials import Credentials
from triptych.display import Display, choose_display
from triptych.foreground import run_in_foreground
from triptych.gateway_options import credential_options
from triptych.processes import Pipeline, running_pipeline
from triptych.progress import RunProgress
from triptych.run_spec import RunOptions, check_counts, model_options, models_of, run_options, to_spec
from triptych.v1 import stage_pb2
from triptych.v1.pipeline_pb2 import Event, RunSpec, RunState
from triptych.vocabulary import unknown_words

# Short enough for a folder's name; `--seed` takes all of uint64.
SEED_BITS = 32


@dataclass(frozen=True)
class Output:
    """Where a run's results go and how they are told."""

    album: Album
    display: Display
    as_json: bool


@click.command()
@click.argument("prompt")
@run_options
@model_options
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[default: out/PROMPT-SEED]")
@click.option(
    "--gateway", metavar="HOST:PORT", help="Use a running gateway instead of starting the services."
)
@credential_options
@click.option(
    "--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one event a line as JSON."
)
def run(
    prompt: str,
    out: Path | None,
    gateway: str | None,
    credentials: Credentials,
    as_json: bool,
    seed: int | None,
    **settings: Any,
) -> None:
    """Make pictures from PROMPT: sketches, variations of the best, an enlargement of the best of those.

    Without --gateway the services are started for this run and stopped after it.
    """
    if not prompt.strip():
        raise click.BadParameter("it is empty; say what the picture should show", param_hint="PROMPT")
    models = models_of(settings)
    if gateway and models:
        raise click.UsageError(
            f"--{next(iter(models))}-model and --gateway: a running gateway has its models already"
        )
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    options = RunOptions(seed=seed, **settings)
    check_counts(options)
    album = Album(out or Path("out") / f"{slug(prompt)}-{seed}", prompt)
    output = Output(album, choose_display(as_json=as_json), as_json)
    spec = to_spec(prompt, options)
    stages = {name: ["--port", "0", *models.get(name, ())] for name in needed_stages(options, spec)}
    try:
        run_in_foreground(
            run_through(gateway, credentials, spec, output) if gateway else run_alone(stages, spec, output)
        )
    finally:
        album.leave_no_empty_folder()


def needed_stages(options: RunOptions, spec: RunSpec) -> list[str]:
    """The services that a run cannot do without; to choose some pictures before others takes the refiner's CLIP."""
    ranks = bool(spec.automatic.top_k_after_generate or spec.automatic.top_k_after_refine)
    needs = {"generator": True, "refiner": options.refines or ranks, "upscaler": options.upscales}
    return [name for name, is_needed in needs.items() if is_needed]


async def run_through(address: str, credentials: Credentials, spec: RunSpec, output: Output) -> None:
    """Runs the spec on a gateway that is there, shown live."""
    with output.display:
        finished, progress = await follow(address, credentials, spec, output)
    conclude(finished, progress, output)


async def run_alone(stages: dict[str, list[str]], spec: RunSpec, output: Output) -> None:
    """Starts the services, runs the spec on them, and stops them."""
    display = output.display
    async with AsyncExitStack() as stack:
        stack.enter_context(display)
        display.starting([*stages, "gateway"])
        pipeline = await stack.enter_async_context(running_pipeline(stages, on_ready=display.service_ready))
        try:
            finished, progress = await follow(pipeline.gateway.address, Credentials(), spec, output)
        except Unreachable as error:
            raise click.ClickException(await why_it_broke(pipeline, str(error))) from None
    conclude(finished, progress, output)


async def follow(
    address: str, credentials: Credentials, spec: RunSpec, output: Output
) -> tuple[Event.Finished, RunProgress]:
    """Streams one run: keeps its pictures, shows its progress, returns how it ended. Raises CallError."""
    progress = RunProgress(spec)
    finished = Event.Finished()
    async with Client(address, **vars(credentials)) as client:
        await note_unknown_words(client, spec.prompt, output.display)
        try:
            async with aclosing(client.stream_run(spec)) as events:
                async for event in events:
                    path = keep(event, output.album, address)
                    progress.update(event)
                    output.display.show(event, progress)
                    if output.as_json:
                        click.echo(to_json(event, path))
                    if event.HasField("warning"):
                        output.display.note(f"Warning: {event.warning.message}")
                    if event.HasField("finished"):
                        finished = event.finished
        except CallError:
            # A failed run is told twice, as its last event and as the status of the call; what it made is kept.
            if finished.state == RunState.RUN_STATE_UNSPECIFIED:
                raise
    return finished, progress


def keep(event: Event, album: Album, address: str) -> Path | None:
    try:
        return album.save(event)
    except ValueError as error:
        raise click.ClickException(f"the gateway at {address} sent a picture that is none: {error}") from None


async def note_unknown_words(client: Client, prompt: str, display: Display) -> None:
    """Says which words of the prompt are not among those that the generator lists, where it lists any."""
    for served in await client.list_models():
        model = served.model
        known = [word for words in model.vocabulary.values() for word in words.words]
        if model.stage != stage_pb2.STAGE_GENERATE or not known:
            continue
        if unknown := unknown_words(prompt, known):
            hint = f"; try: {model.example_prompts[0]}" if model.example_prompts else ""
            display.note(f"Note: the model {model.name} may not know: {', '.join(unknown)}{hint}")


def conclude(finished: Event.Finished, progress: RunProgress, output: Output) -> None:
    """Writes the contact sheet and says where everything is; raises ClickException unless all went well."""
    album = output.album
    if album.images:
        sheet = album.write_contact_sheet()
        if not output.as_json:
            for name, stage in progress.stages.items():
                files = [str(path) for _, path in album.of_stage(name)]
                click.echo(
                    f"{name}: {len(files)} of {stage.num_expected} in {stage.elapsed_s(progress.clock()):.1f} s"
                )
                for file in files:
                    click.echo(f"  {file}")
            click.echo(f"all on one sheet: {sheet}")
    if finished.state != RunState.RUN_STATE_SUCCEEDED:
        state = RunState.Name(finished.state).removeprefix("RUN_STATE_").lower().replace("_", " ")
        raise click.ClickException(
            f"the run {state}: {finished.error.message or 'the gateway gave no reason'}"
        )


async def why_it_broke(pipeline: Pipeline, otherwise: str) -> str:
    """The last words of a service that has ended; `otherwise` when all still run."""
    for child in pipeline.children:
        if child.process.returncode is not None:
            return f"the {child.name} stopped: {await child.epitaph()}"
    return otherwise


def to_json(event: Event, path: Path | None) -> str:
    """The event as protobuf's JSON on one line; a picture's bytes are replaced by the path of its file."""
    copy = Event()
    copy.CopyFrom(event)
    carrier = copy.WhichOneof("kind") if path is not None else None
    if carrier is not None:
        getattr(copy, carrier).image.ClearField("data")
    fields = json_format.MessageToDict(copy)
    if carrier is not None:
        name = copy.DESCRIPTOR.fields_by_name[carrier].json_name
        fields[name].setdefault("image", {})["path"] = str(path)
    return json.dumps(fields, ensure_ascii=False)
