"""A deployment on a target for the commands of `triptych deploy`, and the options that targets share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from deploy.deployer import Deployer
from deploy.deployment import Deployment
from deploy.gateway import Gateway, LocalGateway
from deploy.requested_state import RequestedState
from deploy.tagged_processes import TaggedProcesses
from services.weights.cache import user_cache
from triptych.cli.terminal.spinner import spinning
from triptych.terminal_text import echo

LIST = "workers.json"
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

Command = TypeVar("Command", bound=Callable[..., None])


@dataclass(frozen=True)
class Place:
    """A deployment at a place, as the commands have it."""

    deployer: Deployer
    gateway: Gateway
    # Of the list that the gateway reads; None where it finds its workers by itself.
    list_path: Path | None
    state: RequestedState
    # Makes ready what workers are started from, where there is such a thing.
    prepare: Callable[[], None] = lambda: None

    @property
    def deployment(self) -> Deployment:
        return Deployment(self.deployer, self.list_path, echo, state=self.state)

    @contextmanager
    def watched(self, text: str) -> Iterator[Deployment]:
        """The deployment, with a spinner while it is silent."""
        with spinning(text):
            yield Deployment(self.deployer, self.list_path, echo, state=self.state)


def name_option(command: Command) -> Command:
    """--name, of every place."""
    return click.option(
        "--name", default="default", help="Name of the deployment; a target can have several."
    )(command)


def folder_of(place: str, name: str) -> Path:
    """Of a deployment, on this machine."""
    return user_cache() / "deployments" / (name if place == "local" else f"{place}-{name}")


def requested_state(place: str, name: str) -> RequestedState:
    """What was requested of a deployment."""
    return RequestedState(folder_of(place, name))


def local_gateway(place: str, name: str, *options: str) -> tuple[LocalGateway, Path]:
    """A gateway here for workers elsewhere, and the list of them that it reads."""
    folder = folder_of(place, name)
    processes = TaggedProcesses(f"{place}-gateway:{name}", folder)
    return LocalGateway(processes, ["--workers-file", str(folder / LIST), *options]), folder / LIST
