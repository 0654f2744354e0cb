"""Options of how much the gateway does at once, and how long it waits for whom."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gateway.runs.admission import Room
from gateway.stages import StageKind
from gateway.workers.retry_policy import Patience
from gateway.workers.targets import Target, WorkersFile


@dataclass(frozen=True)
class Work:
    """What the options say. `workers` is the list of workers, where there is one."""

    room: Room
    patience: Patience
    workers: WorkersFile | None

    def targets(self, kind: StageKind, named: tuple[Target, ...]) -> tuple[Target, ...]:
        """The workers that the options name: where there is a list, their defaults do not count."""
        source = click.get_current_context().get_parameter_source(kind.worker)
        return () if self.workers is not None and source is ParameterSource.DEFAULT else named


def work_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which is called with `work` in their place."""

    @functools.wraps(command)
    def with_work(
        *arguments: Any,
        workers_file: Path | None,
        max_runs: int,
        max_queued_runs: int,
        max_runs_per_caller: int | None,
        max_queued_runs_per_caller: int,
        stall_timeout: float,
        worker_timeout: float,
        max_workers_per_image: int,
        **others: Any,
    ) -> Any:
        patience = Patience(
            stall_timeout_s=stall_timeout,
            worker_timeout_s=worker_timeout,
            max_workers=max_workers_per_image,
        )
        room = Room(max_runs, max_queued_runs, max_runs_per_caller, max_queued_runs_per_caller)
        return command(*arguments, work=Work(room, patience, _open(workers_file)), **others)

    for option in reversed(_OPTIONS):
        with_work = option(with_work)
    return with_work


def _open(path: Path | None) -> WorkersFile | None:
    try:
        return None if path is None else WorkersFile(path)
    except ValueError as error:
        raise click.UsageError(f"--workers-file: {error}") from None


_OPTIONS = (
    click.option(
        "--workers-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help='More workers, as JSON: {"generator": ["HOST:PORT"], "refiner": [], "upscaler": []}; read again when it changes.',
    ),
    click.option(
        "--max-runs", type=click.IntRange(1), default=64, show_default=True, help="Runs under way at once."
    ),
    click.option(
        "--max-queued-runs",
        type=click.IntRange(0),
        default=256,
        show_default=True,
        help="Runs that wait for their turn; further ones are refused with QUEUE_FULL.",
    ),
    click.option(
        "--max-runs-per-caller",
        type=click.IntRange(1),
        help="Runs of one caller under way at once, unless its token says otherwise.  [default: all]",
    ),
    click.option(
        "--max-queued-runs-per-caller",
        type=click.IntRange(0),
        default=64,
        show_default=True,
        help="Runs of one caller that wait, likewise; further ones are refused with RATE_LIMITED.",
    ),
    click.option(
        "--stall-timeout",
        type=click.FloatRange(1),
        default=300.0,
        show_default=True,
        help="Seconds of silence after which a worker that makes a picture is taken for lost.",
    ),
    click.option(
        "--worker-timeout",
        type=click.FloatRange(0),
        default=300.0,
        show_default=True,
        help="Seconds that an image waits for a worker when there is none.",
    ),
    click.option(
        "--max-workers-per-image",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        help="Workers that may fail of an image before it is given up as their cause.",
    ),
)
