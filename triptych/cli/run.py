"""`triptych run`: a prompt becomes pictures on disk, through a gateway of its own or one that runs already."""

import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from triptych._reconnect import Backoff
from triptych.cli.choose_images import ask, can_ask
from triptych.cli.credential_options import credential_options
from triptych.cli.display import Display, choose_display
from triptych.cli.follow_run import Output, conclude, decide_show, follow, show
from triptych.cli.output_folder import OutputFolder, slug
from triptych.cli.processes import Pipeline, running_pipeline
from triptych.cli.run_options import RunOptions, check_options, model_options, models_of, run_options, to_spec
from triptych.cli.signals import run_in_foreground
from triptych.client import Client, Unreachable
from triptych.credentials import Credentials
from triptych.errors import CallError
from triptych.progress import RunProgress
from triptych.result import RunResult
from triptych.v1.pipeline_pb2 import RefineStage, RunSpec
from triptych.vocabulary import describe_reading

# Short enough for a folder's name; `--seed` takes all of uint64.
SEED_BITS = 32


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
    "--show/--no-show", default=None, help="Show the pictures here.  [default: where the terminal can]"
)
@click.option(
    "--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one event a line as JSON."
)
def run(
    prompt: str,
    out: Path | None,
    gateway: str | None,
    credentials: Credentials,
    show: bool | None,
    as_json: bool,
    seed: int | None,
    **settings: Any,
) -> None:
    """Make pictures from PROMPT: sketches, variations of the best, an enlargement of the best of those.

    With --image: variations of pictures of yours, and an enlargement of the best; with --no-refine as well, of each.
    Without --gateway the services are started for this run and stopped after it.
    """
    if not prompt.strip():
        raise click.BadParameter("it is empty; say what the picture should show", param_hint="PROMPT")
    models = models_of(settings)
    if settings["manual"] and not (gateway or can_ask()):
        raise click.UsageError(
            "--manual without --gateway: expected a terminal to choose in, and there is none"
        )
    if gateway and models:
        raise click.UsageError(
            f"--{next(iter(models))}-model and --gateway: a running gateway has its models already"
        )
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    options = RunOptions(seed=seed, **settings)
    check_options(options)
    album = OutputFolder(out or Path("out") / f"{slug(prompt)}-{seed}", prompt)
    shows_pictures = decide_show(show, as_json=as_json)
    output = Output(choose_display(as_json=as_json), as_json, album, shows_pictures)
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
    needs = {
        "generator": not options.images,
        "refiner": options.refines or ranks,
        "upscaler": options.upscales,
    }
    return [name for name, is_needed in needs.items() if is_needed]


async def run_through(address: str, credentials: Credentials, spec: RunSpec, output: Output) -> None:
    """Runs the spec on a gateway that is there, shown live."""
    with output.display:
        result, progress = await make(address, credentials, spec, output)
    conclude(result, progress, output)


async def run_alone(stages: dict[str, list[str]], spec: RunSpec, output: Output) -> None:
    """Starts the services, runs the spec on them, and stops them."""
    display = output.display
    async with AsyncExitStack() as stack:
        stack.enter_context(display)
        display.starting([*stages, "gateway"])
        pipeline = await stack.enter_async_context(running_pipeline(stages, on_ready=display.service_ready))
        try:
            # Nobody comes back to these services: a gateway that went away has ended.
            at_once = Backoff(give_up_after_s=0)
            address = pipeline.gateway.address
            result, progress = await make(address, Credentials(), spec, output, backoff=at_once)
        except Unreachable as error:
            raise click.ClickException(await why_it_broke(pipeline, str(error))) from None
    conclude(result, progress, output, can_go_on=False)


async def make(
    address: str, credentials: Credentials, spec: RunSpec, output: Output, *, backoff: Backoff | None = None
) -> tuple[RunResult, RunProgress]:
    """Makes the run and tells its events. Raises CallError, but not because the run failed."""
    async with Client(address, **vars(credentials), backoff=backoff) as client:
        await note_replaced_words(client, spec, output.display)
        run, progress = client.run(spec), RunProgress(spec)
        await follow(run, progress, output)
        if run.result.state == "awaiting_selection" and can_ask():
            return await choose(client, run.result, progress, spec, output), progress
        return run.result, progress


async def choose(
    client: Client, result: RunResult, progress: RunProgress, spec: RunSpec, output: Output
) -> RunResult:
    """Asks which pictures go on, until the run is done or nothing more goes on; returns all that there is by then."""
    while result.state == "awaiting_selection":
        with output.display.paused():
            show(result, output)
            choice = await ask(result, spec)
        if choice is None:
            break
        # Their settings are those of the run.
        to_refine = RefineStage() if choice.stage == "refine" else None
        selected = client.select(choice.names, refine=to_refine, upscale=choice.stage == "upscale")
        await follow(selected, progress, output)
        result.merge(selected.result)
    return result


async def note_replaced_words(client: Client, spec: RunSpec, display: Display) -> None:
    """Says which words of the prompt the model replaces, before any time is spent. It is a help: without it nothing fails."""
    if not spec.prompt:
        return
    try:
        reading = await client.read_prompt(spec.prompt, model=spec.model)
    except CallError:  # the run itself says what is wrong, and an older gateway has no such call
        return
    for line in describe_reading(reading):
        display.note(f"Note: {line}")


async def why_it_broke(pipeline: Pipeline, otherwise: str) -> str:
    """The last words of a service that has ended; `otherwise` when all still run."""
    for child in pipeline.children:
        if child.process.returncode is not None:
            return f"the {child.name} stopped: {await child.last_output()}"
    return otherwise
