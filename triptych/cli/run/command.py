"""`triptych run`: a prompt becomes pictures on disk, through a gateway of its own or one that runs already."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TextIO

import click

from triptych._reconnect import Backoff
from triptych.cli.credential_options import ADDRESS, credential_options, patience
from triptych.cli.processes import Pipeline, running_pipeline
from triptych.cli.run.choose_images import ask, can_ask
from triptych.cli.run.follow_run import (
    MAX_LOADED_PIXELS,
    Leaving,
    Output,
    conclude,
    decide_show,
    follow,
    show,
)
from triptych.cli.run.help import EXAMPLES, GroupedCommand, in_options
from triptych.cli.run.options import (
    RunOptions,
    check_options,
    model_options,
    models_of,
    name_models,
    run_options,
    to_spec,
)
from triptych.cli.run.output_folder import SUFFIXES, OutputFolder, slug
from triptych.cli.terminal.display import Display, choose_display
from triptych.cli.terminal.signals import run_in_foreground
from triptych.client import Client, InvalidRequest, Unreachable
from triptych.credentials import Credentials
from triptych.errors import CallError
from triptych.progress import RunProgress
from triptych.result import RunResult
from triptych.stages import STAGES
from triptych.terminal_text import echo, escape
from triptych.v1.pipeline_pb2 import RunSpec, SelectImagesRequest
from triptych.vocabulary import describe_reading

# Short enough for a folder's name; `--seed` takes all of uint64.
SEED_BITS = 32


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--prompt-file",
    metavar="FILE",
    type=click.File("r", encoding="utf-8-sig", errors="strict"),
    help="A prompt from each line of a file; - reads standard input.",
)
@run_options
@model_options
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder for the pictures of one run; several prompts get a folder each in it.  [default: out/PROMPT-SEED]",
)
@click.option(
    "--format", "file_format", type=click.Choice(list(SUFFIXES)), default="png", help="Of the pictures there."
)
@click.option(
    "--gateway",
    metavar="HOST:PORT",
    type=ADDRESS,
    help="Use a running gateway instead of starting the services.",
)
@click.option("--detach", is_flag=True, help="With --gateway: the run continues when this command ends.")
@credential_options
@click.option(
    "--show/--no-show", default=None, help="Show the pictures here.  [default: where the terminal can]"
)
@click.option("--quiet", "-q", is_flag=True, help="Print only the files and errors.")
@click.option("--verbose", "-v", is_flag=True, help="Show what the services log as well.")
@click.option(
    "--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one event a line as JSON."
)
def run(
    prompts: tuple[str, ...],
    prompt_file: TextIO | None,
    out: Path | None,
    file_format: str,
    gateway: str | None,
    credentials: Credentials,
    detach: bool,
    show: bool | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    seed: int | None,
    **settings: Any,
) -> None:
    """Make pictures from PROMPT: sketches, variations of the best, and the best of those upscaled.

    With --image-prompt, and a generator of the unCLIP family: sketches that take up pictures of yours.
    With --image: variations of pictures of yours, and the best upscaled; with --no-refine, each upscaled.
    Without --gateway the services are started for this call and stopped after it. Of several prompts each is a run.
    """
    has_images = settings["images"] or settings["image_prompts"]
    asked = read_prompts(prompts, prompt_file, needs_one=not has_images or not settings["no_refine"])
    models = models_of(settings)
    if settings["manual"] and not (gateway or can_ask()):
        raise click.UsageError(
            "--manual without --gateway: expected a terminal to choose in, and there is none"
        )
    if detach and not gateway:
        raise click.UsageError("--detach: expected --gateway, since the services of this call end with it")
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    options = RunOptions(seed=seed, **settings)
    check_options(options)
    # Before anything is begun: a file that cannot be read is found now.
    specs = [to_spec(prompt, options) for prompt in asked]
    if gateway:
        for spec in specs:
            name_models(spec, models)
    base = out or Path("out")
    is_folder_each = out is None or len(asked) > 1
    display = choose_display(as_json=as_json, is_quiet=quiet)
    shows_pictures = decide_show(show, as_json=as_json)
    outputs: list[Output] = []
    for prompt in asked:
        folder = base / f"{slug(prompt)}-{seed}" if is_folder_each else base
        taken = [output.album.out for output in outputs if output.album is not None]
        album = OutputFolder(folder, prompt, file_format=file_format, taken=taken)
        outputs.append(Output(display, as_json, album, shows_pictures, is_quiet=quiet))
    stages = {
        name: ["--port", "0", *(["--model", models[name]] if name in models else [])]
        for name in needed_workers(specs[0])
    }
    jobs = list(zip(specs, outputs, strict=True))
    on_log = show_log if verbose else None
    try:
        run_in_foreground(
            run_through(gateway, credentials, jobs, detach=detach)
            if gateway
            else run_alone(stages, jobs, on_log)
        )
    finally:
        for output in outputs:
            if output.album is not None:
                output.album.leave_no_empty_folder()


def read_prompts(prompts: Sequence[str], file: TextIO | None, *, needs_one: bool) -> list[str]:
    """Those of the command line, then those of the file, one a line. Raises BadParameter or UsageError."""
    asked = list(prompts)
    if file is not None:
        try:
            asked += [line.strip() for line in file if line.strip()]
        except UnicodeDecodeError as error:
            raise click.BadParameter(
                f"expected UTF-8, got {error.object[error.start : error.end]!r}; save the file as UTF-8",
                param_hint="'--prompt-file'",
            ) from None
        if not asked:
            raise click.BadParameter("expected a prompt on each line, got none", param_hint="'--prompt-file'")
    if not asked and not needs_one:
        # A picture is only upscaled: there is nothing to say.
        return [""]
    if not asked:
        raise click.UsageError(
            'expected a PROMPT, such as: triptych run "a red house"; or --prompt-file FILE, - for standard input'
        )
    for prompt in asked:
        if needs_one and not prompt.strip():
            raise click.BadParameter("it is empty; say what the picture should show", param_hint="PROMPT")
    return asked


def show_log(name: str, line: str) -> None:
    echo(f"[{name}] {escape(line)}", err=True)


def needed_workers(spec: RunSpec) -> list[str]:
    """The services that a run cannot do without; to choose some pictures before others takes the refiner's CLIP."""
    is_ranked = any(top_k for _, top_k in spec.automatic.ListFields())
    return [
        stage.worker_name
        for stage in STAGES
        if spec.HasField(stage.name) or (is_ranked and stage.name == "refine")  # type: ignore[arg-type]  # fields by name
    ]


async def run_through(
    address: str, credentials: Credentials, jobs: Sequence[tuple[RunSpec, Output]], *, detach: bool = False
) -> None:
    """Runs the specs on a gateway that is there, one after the other, shown live."""
    for spec, output in jobs:
        how = Leaving(address, goes_on=detach or spec.HasField("manual"))
        with output.display:
            result, progress = await make(
                address,
                credentials,
                spec,
                output,
                backoff=patience(address),
                detach=detach or None,
                leaving=how,
            )
        conclude(result, progress, output)


async def run_alone(
    stages: dict[str, list[str]],
    jobs: Sequence[tuple[RunSpec, Output]],
    on_log: Callable[[str, str], None] | None = None,
) -> None:
    """Starts the services, runs the specs on them, and stops them."""
    display = jobs[0][1].display
    finished = []
    async with AsyncExitStack() as stack:
        stack.enter_context(display)
        display.starting([*stages, "gateway"])
        pipeline = await stack.enter_async_context(
            running_pipeline(stages, on_ready=display.service_ready, on_log=on_log)
        )
        address = pipeline.gateway.address
        # Nobody comes back to these services: a gateway that went away has ended.
        at_once = Backoff(give_up_after_s=0)
        try:
            for spec, output in jobs:
                made = await make(address, Credentials(), spec, output, backoff=at_once, leaving=Leaving())
                finished.append((*made, output))
        except Unreachable as error:
            raise click.ClickException(await why_it_broke(pipeline, str(error))) from None
    for result, progress, output in finished:
        conclude(result, progress, output, can_go_on=False)


async def make(
    address: str,
    credentials: Credentials,
    spec: RunSpec,
    output: Output,
    *,
    backoff: Backoff,
    detach: bool | None = None,
    leaving: Leaving,
) -> tuple[RunResult, RunProgress]:
    """Makes the run and shows its events. Raises CallError, but not because the run failed."""
    async with Client(
        address, **vars(credentials), backoff=backoff, max_loaded_pixels=MAX_LOADED_PIXELS
    ) as client:
        try:
            await note_replaced_words(client, spec, output.display)
            run, progress = client.run(spec, detach=detach), RunProgress(spec)
            await follow(client, run, progress, output, leaving)
            if run.result.state == "awaiting_selection" and can_ask():
                return await choose(client, run.result, progress, spec, output), progress
        except InvalidRequest as error:
            raise click.UsageError(in_options(error)) from None
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
        stage: Any = getattr(SelectImagesRequest.Selection(), choice.stage)
        selected = client.select(choice.names, **{choice.stage: stage})
        await follow(client, selected, progress, output, Leaving(client.address, goes_on=True))
        result.merge(selected.result)
    return result


async def note_replaced_words(client: Client, spec: RunSpec, display: Display) -> None:
    """Prints what the model draws in place of the prompt and its words, before the run starts. Errors are ignored."""
    if not spec.prompt:
        return
    try:
        reading = await client.read_prompt(spec.prompt, model=spec.generate.model or spec.model)
    except CallError:  # the run itself reports what is wrong, and an older gateway has no such call
        return
    for line in describe_reading(reading):
        display.note(f"Note: {line}")
    if not reading.is_unknown and reading.prompt not in ("", spec.prompt):
        display.note(f"Note: the prompt is drawn as {reading.prompt!r}")


async def why_it_broke(pipeline: Pipeline, otherwise: str) -> str:
    """The last words of a service that has ended; `otherwise` when all still run."""
    for child in pipeline.children:
        if child.process.returncode is not None:
            return f"the {child.name} stopped: {await child.last_output()}"
    return otherwise
