"""`triptych bench`: measures how fast a deployment's stages are, and simulates how it would carry a load."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from triptych._files import read_file
from triptych._run_stream import RunStream
from triptych.cli.credential_options import ADDRESS, credential_options, patience
from triptych.cli.simulation import (
    STAGES,
    Eviction,
    Load,
    Outcome,
    StageModel,
    fewest_replicas,
    scale_next,
    simulate,
)
from triptych.cli.terminal.signals import run_in_foreground
from triptych.cli.terminal.spinner import spinning
from triptych.client import Client
from triptych.credentials import Credentials
from triptych.progress import STAGE_NAMES
from triptych.result import Picture
from triptych.spec import make_spec
from triptych.terminal_text import echo, escape_json

PROMPT = "a red house under a full moon"
NUM_REPEATS = 3


class PerStage(click.ParamType[tuple[float, ...], str | tuple[float, ...]]):
    """Three numbers, one a stage: "2,4,1"."""

    name = "G,R,U"

    def convert(
        self, value: str | tuple[float, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != len(STAGES) or min(numbers) < 0:
            self.fail(
                f"expected three numbers such as 2,4,1 for {', '.join(STAGES)}, got {value!r}", param, ctx
            )
        return numbers


@click.group(no_args_is_help=True)
def bench() -> None:
    """Measure the stages of a running deployment; simulate its latency and cost under a load."""


@bench.command()
@click.option(
    "--gateway",
    metavar="HOST:PORT",
    type=ADDRESS,
    default="127.0.0.1:50050",
    help="Of the deployment to measure.",
)
@credential_options
def measure(gateway: str, credentials: Credentials) -> None:
    """Print the stages' service times as JSON, for `triptych bench simulate --times FILE`.

    Makes pictures one at a time and with full batches, on an otherwise idle deployment with one replica a stage.
    """

    async def show() -> None:
        with spinning("measuring") as spinner:
            times = await measured(gateway, credentials, report=spinner.update)
        echo(escape_json(json.dumps(times, indent=1)))

    run_in_foreground(show())


async def measured(
    gateway: str, credentials: Credentials, *, report: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, float]]:
    """The service times of each stage, as `simulate` wants them; `report` gets what is being measured."""
    async with Client(gateway, **vars(credentials), backoff=patience(gateway)) as client:
        slots = {
            STAGE_NAMES[entry.model.stage]: entry.model.limits.num_slots
            for entry in await client.list_models()
        }
        seconds = {batch: await _seconds(client, batch, report) for batch in sorted({1, *slots.values()})}
    return {
        stage: fitted(seconds[1][stage], seconds[num_slots][stage], num_slots)
        for stage, num_slots in slots.items()
    }


def fitted(one_s: float, full_s: float, slots: int) -> dict[str, float]:
    """What a batch costs anyhow, and what each picture in it adds: the line through a picture alone and a full batch.

    Neither is below 0. Where a batch costs more than its pictures one by one, all of it is theirs, for a full batch shows
    what a replica can do; a picture alone is then a little faster than it is said to be.
    """
    each_s = max(0.0, (full_s - one_s) / (slots - 1)) if slots > 1 else 0.0
    fixed_s = one_s - each_s
    if fixed_s < 0:
        fixed_s, each_s = 0.0, full_s / slots
    return {"slots": slots, "fixed_s": round(fixed_s, 4), "each_s": round(each_s, 4)}


async def _seconds(client: Client, batch: int, report: Callable[[str], None]) -> dict[str, float]:
    """The median compute time of a picture by stage, `batch` at once; the first round does not count.

    By hand, so that no stage begins before the one before has ended: they may share a device, or processors.
    """
    found: dict[str, list[float]] = defaultdict(list)

    async def follow(stream: RunStream, *, counts: bool) -> Sequence[Picture]:
        async for event in stream.until_it_rests():
            if event.HasField("timing") and counts:
                found[STAGE_NAMES[event.timing.stage]].append(event.timing.compute.ToNanoseconds() / 1e9)
        return stream.result.pictures

    for repeat in range(NUM_REPEATS + 1):
        counts = repeat > 0
        report(f"measuring {batch} at once, round {repeat + 1} of {NUM_REPEATS + 1}")
        spec = make_spec(PROMPT, candidates=batch, manual=True, variations=0)
        sketches = await follow(client.run(spec, detach=True, show=False), counts=counts)
        await follow(client.select(sketches[0], refine=batch, show=False), counts=counts)
        await follow(client.select(sketches, upscale=True, show=False), counts=counts)
    return {stage: median(seconds) for stage, seconds in found.items()}


@bench.command("simulate")
@click.option(
    "--times",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Service times as `triptych bench measure` prints them.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), required=True, help="Runs an hour.")
@click.option("--pictures", type=PerStage(), default="8,8,1", help="Pictures that a run makes, by stage.")
@click.option(
    "--replicas", type=PerStage(), help="[default: the fewest with short waits]", show_default=False
)
@click.option("--price", type=PerStage(), default="0,0,0", help="Of a replica an hour, by stage.")
@click.option("--evictions", type=click.FloatRange(min=0), default=0.0, help="Of a replica, an hour.")
@click.option(
    "--replacement", type=click.FloatRange(min=0), default=300.0, help="Seconds until another one serves."
)
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), default=8.0, help="To simulate.")
@click.option("--seed", type=int, default=0)
@click.option("--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one JSON object.")
def simulate_command(
    times: Path,
    rate: float,
    pictures: tuple[float, ...],
    replicas: tuple[float, ...] | None,
    price: tuple[float, ...],
    evictions: float,
    replacement: float,
    hours: float,
    seed: int,
    as_json: bool,
) -> None:
    """Simulate a deployment: latency, utilisation, cost, and which stage to scale next.

    Runs arrive at random; pictures of a replica share its batch; an evicted replica's pictures are made again.
    """
    stages = read_times(times, price)
    load = Load(rate / 3600, tuple(int(count) for count in pictures))  # type: ignore[arg-type]  # three, by PerStage
    if not sum(load.pictures):
        raise click.BadParameter("a run makes at least one picture", param_hint="--pictures")
    if replicas is None:
        stages = fewest_replicas(stages, load)
    else:
        if not all(replicas):
            raise click.BadParameter("every stage needs a replica", param_hint="--replicas")
        stages = [replace(stage, replicas=int(n)) for stage, n in zip(stages, replicas, strict=True)]
    eviction = Eviction(evictions, replacement)
    try:
        with spinning("simulating"):
            outcome = simulate(stages, load, eviction, hours=hours, seed=seed)
            following = scale_next(stages, load, eviction, hours=hours, seed=seed)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        echo(escape_json(json.dumps(_report(stages, outcome, following))))
    else:
        _show(stages, outcome, following)


def read_times(path: Path, price: tuple[float, ...]) -> list[StageModel]:
    """One replica of each stage, as `measure` printed their times. Raises click.BadParameter."""
    try:
        raw = json.loads(read_file(path))
        return [
            StageModel(
                1, int(raw[name]["slots"]), float(raw[name]["fixed_s"]), float(raw[name]["each_s"]), cost
            )
            for name, cost in zip(STAGES, price, strict=True)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise click.BadParameter(
            f"{path} does not hold the times of {', '.join(STAGES)} ({error!r}); make it with `triptych bench measure`",
            param_hint="--times",
        ) from None


def _report(stages: list[StageModel], outcome: Outcome, following: dict[str, Outcome]) -> dict[str, Any]:
    return {
        "replicas": {name: stage.replicas for name, stage in zip(STAGES, stages, strict=True)},
        **outcome.__dict__,
        "with_one_more": {
            name: {"whole_run_s": other.whole_run_s, "cost_per_1000": other.cost_per_1000}
            for name, other in following.items()
        },
    }


def _show(stages: list[StageModel], outcome: Outcome, following: dict[str, Outcome]) -> None:
    console = Console()
    table = Table(
        "stage", "replicas", "slots in use", "pictures waiting", "whole run with one more: median, 95 %"
    )
    for name, stage in zip(STAGES, stages, strict=True):
        other = following.get(name)
        table.add_row(
            name,
            str(stage.replicas),
            f"{outcome.utilisation[name]:.0%}",
            f"{outcome.waiting[name]:.1f}",
            f"{other.whole_run_s[0]:.1f} s, {other.whole_run_s[1]:.1f} s" if other else "",
        )
    console.print(table)
    console.print(f"{outcome.num_runs} runs; median and 95th percentile:")
    console.print(f"  first sketch  {outcome.first_picture_s[0]:.1f} s, {outcome.first_picture_s[1]:.1f} s")
    console.print(f"  whole run     {outcome.whole_run_s[0]:.1f} s, {outcome.whole_run_s[1]:.1f} s")
    console.print(f"  cost of 1,000 pictures  {outcome.cost_per_1000:.2f}")
    if outcome.num_repeated:
        console.print(f"  {outcome.num_repeated} pictures were begun again after an eviction")
    if not outcome.is_stable:
        console.print("[bold]More arrives than a stage can make: its queue grows without end.[/bold]")
    best = min(following, key=lambda name: following[name].whole_run_s[1])
    console.print(f"To be faster, scale [bold]{best}[/bold] next.")
