"""When a call to a worker is retried, and how long it may take. Images and CLIP scores follow the same rules."""

import asyncio
from dataclasses import dataclass, replace

import grpc

from gateway.workers.errors import StageError
from services.errors import DeadlineExceeded

# Of one image, drains of workers included.
MAX_ATTEMPTS = 10


@dataclass(frozen=True)
class _Rule:
    """What a failure means for the next attempt; without a rule there is none."""

    # Whether the same worker would fail again.
    excludes_worker: bool = False
    # Whether the image may be the cause, if the worker had begun with it.
    blames_image: bool = True


_RETRIED = {
    "WORKER_LOST": _Rule(),
    "WORKER_STALLED": _Rule(),
    "WORKER_BROKEN": _Rule(excludes_worker=True),
    "INTERNAL": _Rule(excludes_worker=True),
    "WORKER_EVICTED": _Rule(blames_image=False),
    "NOT_READY": _Rule(blames_image=False),
}


@dataclass(frozen=True)
class RetryPolicy:
    """How long a call to a stage may take. `deadline` is the caller's, on the event loop's clock."""

    # Silence of a picture that is being made: a worker that hangs although its machine answers. One step of a full
    # batch of GLID-3-xl takes a minute or two without an accelerator.
    stall_timeout_s: float = 300.0
    # The whole call, its time in the worker's queue included.
    call_timeout_s: float = 4 * 3600.0
    deadline: float | None = None
    # A worker's queue in which nothing moves.
    queue_timeout_s: float = 1800.0
    # Until there is a worker that can be given the picture: one may be on its way up, and load gigabytes.
    worker_timeout_s: float = 300.0
    # A picture that so many workers were lost on as they made it is taken for the cause.
    max_workers: int = 3

    def until(self, deadline: float | None) -> "RetryPolicy":
        return replace(self, deadline=deadline)

    def timeout_s(self) -> float:
        """Of a call that begins now; raises DeadlineExceeded when the caller's has passed."""
        if self.deadline is None:
            return self.call_timeout_s
        left_s = self.deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineExceeded("the caller's deadline passed before the picture was done")
        return min(self.call_timeout_s, left_s)


class FailureHistory:
    """The failed attempts of one piece of work; `add` raises when no other attempt may follow.

    `image` names what is made, and is reported as the cause where worker after worker fails with it. Workers are named
    by their addresses.
    """

    def __init__(self, max_workers: int, *, image: str = "") -> None:
        self._max_workers = max_workers
        self._image = image
        # Workers that would fail again, those that may succeed after a restart, and those whose queue is full.
        self.excluded: list[str] = []
        self._unlucky: list[str] = []
        self.queue_full: list[str] = []
        self.last: StageError | None = None
        self._num_failures = 0
        # Workers that failed as they made the image, and those of them that lost other images, too.
        self._num_blamed = self._num_lost = 0

    def add(self, worker: str, error: StageError) -> None:
        """Raises the error if it is final, and IMAGE_POISONED once the image is taken for the cause."""
        self.last = error
        self._num_failures += 1
        rule = _RETRIED.get(error.reason)
        if rule is None or self._num_failures >= MAX_ATTEMPTS:
            raise error
        (self.excluded if rule.excludes_worker else self._unlucky).append(worker)
        is_blamed = rule.blames_image and not error.is_in_queue
        self._num_blamed += is_blamed
        self._num_lost += is_blamed and not rule.excludes_worker
        if self._num_blamed < self._max_workers:
            return
        if self._max_workers == 1 or not self._image:
            raise error
        raise StageError(
            f"{self._image} is given up: {self._num_blamed} workers failed as they made it; the last one: {error}",
            status=grpc.StatusCode.INTERNAL,
            reason="IMAGE_POISONED",
        )

    @property
    def avoided(self) -> list[str]:
        """Workers that are asked again only where there is no other."""
        return [*self._unlucky, *self.queue_full]

    @property
    def may_wait(self) -> bool:
        """Whether a worker that starts later could succeed; after some failures only one that is there already."""
        return self.last is None or not _RETRIED[self.last.reason].excludes_worker

    @property
    def is_last_chance(self) -> bool:
        """Whether one more loss is the last: then no other image on the worker may have been its cause."""
        return bool(self._image) and self._num_lost > 0 and self._num_blamed == self._max_workers - 1
