"""`triptych serve STAGE` for machines of tests: the real server, engine and options, around a network that only counts.

python -m tests.deploy.stage_command serve upscaler --port 0
"""

import sys
from pathlib import Path

import click

from services.errors import TriptychError
from services.serving.stage_command import run_stage, stage_options
from services.serving.stage_service import ServeOptions, model_info
from services.weights.cache import open_model
from services.weights.model_folder import Manifest
from tests.faults.stage_process import SIDE_PX, STAGES, Counting, CountingStepper, Orders

ROOT = Path(__file__).parents[2]


class NoOrders(Orders):
    """Its standard input is at its end."""

    def __init__(self) -> None:
        self.hold_at = 0
        self.hold_rank = False
        self.garbage = ""
        self.garbage_at = 0


def write_command(path: Path) -> Path:
    """A program that stands where `triptych` does on a machine."""
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {__spec__.name} "$@"\n')
    path.chmod(0o755)
    return path


@click.command()
@click.argument("serve", type=click.Choice(["serve"]))
@click.argument("stage", type=click.Choice(list(STAGES)))
@stage_options("generator", slots=4)
def main(options: ServeOptions, serve: str, stage: str) -> None:
    service, add_to_server, kind, name = STAGES[stage]
    open_model(options.model, stage)
    orders = NoOrders()

    def load() -> Counting:
        stepper = CountingStepper(
            stage, orders, num_slots=options.slots, step_s=0.02, side=SIDE_PX, dies_of_seed=-1
        )
        manifest = Manifest(name="counting", stage=stage, files={})
        return Counting(stepper, model_info(manifest, kind, options, image_size=SIDE_PX, device="cpu"))

    run_stage(
        service(orders), add_to_server, load, service_name=f"triptych.v1.{name}Service", options=options
    )


if __name__ == "__main__":
    try:
        main()
    except TriptychError as error:
        sys.exit(f"Error: {error}")
