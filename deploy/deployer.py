"""The interface of a deployment target: launch, list, drain and stop workers.

A Deployer starts and stops the workers of one deployment and always knows which there are: it finds them by the
deployment's tag, wherever the place keeps tags, and needs no memory of its own. What a worker computes it does not know.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from services.errors import TriptychError
from triptych.stages import WORKER_NAMES

STAGES = WORKER_NAMES
# Of deployments: part of paths, of labels and of projects' names.
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class DeployError(TriptychError):
    """A target cannot do what was requested; the message has what to do."""

    reason = "DEPLOY_FAILED"


class State(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    # Ends again and again, and is started anew by the place itself.
    FAILING = "failing"
    # Takes nothing new, finishes what it makes, and ends.
    DRAINING = "draining"


@dataclass(frozen=True)
class Offer:
    """A kind of machine that a worker could run on."""

    machine: str
    is_spot: bool
    price_per_hour: float
    # How likely the machine is taken away within an hour; None if unknown.
    evictions_per_hour: float | None
    note: str = ""


@dataclass(frozen=True)
class Worker:
    """A worker as it is now. `address` is empty until it listens."""

    id: str
    stage: str
    address: str
    state: State
    machine: str = ""
    price_per_hour: float = 0.0
    # What keeps it from serving, where that is known.
    note: str = ""


@dataclass(frozen=True)
class Leftovers:
    """What a teardown could not remove, in words, and what it costs an hour."""

    things: Sequence[str] = ()
    price_per_hour: float = 0.0


@runtime_checkable
class Deployer(Protocol):
    """One deployment at one place. All methods may block; all raise DeployError."""

    # The deployment's tag.
    name: str

    def plan(self) -> Sequence[Offer]:
        """What a worker could run on, the cheapest first."""
        ...

    def launch(self, stage: str) -> Worker:
        """Starts one worker and returns at once; `endpoints` shows when it serves."""
        ...

    def endpoints(self) -> Sequence[Worker]:
        """The deployment's workers as they are now, in the order in which they were started."""
        ...

    def logs(self, worker_id: str, *, num_lines: int = 50) -> str:
        """The end of a worker's log."""
        ...

    def follow_log(self, worker_id: str, *, num_lines: int | None = 50) -> Iterator[str]:
        """The last lines of a worker's log (None: all), then each further one until the worker has ended."""
        ...

    def check_owner(self) -> None:
        """Raises DeployError if another user created the deployment. `launch`, `drain`, `stop` and `teardown` do it, too."""
        ...

    def drain(self, worker_id: str) -> None:
        """Lets a worker finish what it makes, and end. A second time, or one that has ended, changes nothing."""
        ...

    def stop(self, worker_id: str) -> None:
        """Ends a worker now; returns when it is gone."""
        ...

    def teardown(self) -> Leftovers:
        """Ends and removes everything that carries the deployment's tag."""
        ...


def check_name(name: str) -> str:
    """Raises DeployError for a name that not every place could keep as a tag."""
    if not NAME.fullmatch(name):
        raise DeployError(
            f"a deployment's name is 1 to 63 of a-z, 0-9, '-' and '_', and begins with one of the first two; got '{name}'"
        )
    return name


def workers_file(workers: Sequence[Worker]) -> dict[str, list[str]]:
    """What the gateway's --workers-file lists: a draining worker gets nothing new, so it is left out."""
    return {
        stage: [
            worker.address
            for worker in workers
            if worker.stage == stage and worker.address and worker.state is not State.DRAINING
        ]
        for stage in STAGES
    }
