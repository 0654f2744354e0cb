"""The interface between a stage's networks and the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from services.engine.events import EncodedPicture
from services.images.codec import Picture

Job = TypeVar("Job")
Job_contra = TypeVar("Job_contra", contravariant=True)
View = TypeVar("View")


@runtime_checkable  # for the type checks of the tests
class Stepper(Protocol[Job_contra, View]):
    """A network that advances in steps, with room for `num_slots` jobs at once.

    Called from one thread, except `decode`. A View is what decoding needs of a slot: small, and untouched by later steps.
    """

    @property
    def num_slots(self) -> int: ...

    def warm_up(self) -> None:
        """Compiles and touches every shape that serving can meet."""
        ...

    def admit(self, slot: int, job: Job_contra) -> int:
        """Begins a job in a free slot and returns how many steps it takes; raises to fail this job alone."""
        ...

    def step(self, slots: Sequence[int]) -> None:
        """Advances each slot by one step in one forward; has finished when it returns.

        Raises before the state of any slot has changed, so that the slots can be tried again one by one.
        """
        ...

    def preview(self, slot: int) -> View | None:
        """What an unfinished picture looks like now; None when there is nothing of it to see yet."""
        ...

    def result(self, slot: int) -> View:
        """The finished picture of a slot that has made all its steps."""
        ...

    def decode(self, views: Sequence[View]) -> Sequence[Picture | EncodedPicture]:
        """The pictures, or their files. Other threads call it while steps go on, more than one at once."""
        ...

    def release(self, slot: int) -> None:
        """Frees the slot, also in the middle of a job."""
        ...


@runtime_checkable
class ManyStepper(Stepper[Job_contra, View], Protocol[Job_contra, View]):
    """A stepper that can make several steps in one dispatch to its device."""

    def step_many(self, slots: Sequence[int], limit: int) -> int:
        """Advances each slot by 1 to `limit` steps and returns by how many; otherwise as `step`."""
        ...


@dataclass(frozen=True)
class JobRequest(Generic[Job]):
    """One image of a request: its index there, what to make, and a preview every so many steps (0: none)."""

    index: int
    job: Job
    preview_every: int = 0
    # Warnings about the image for the caller, by reason.
    warnings: Mapping[str, str] = field(default_factory=dict)
