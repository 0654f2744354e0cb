"""The retry policy: how often and how long to try, by the failures of workers and images.

Pictures and CLIP scores are tried by the same rules. It makes no call itself.
"""

import asyncio
from dataclasses import dataclass, replace

import grpc

from gateway.workers.errors import StageError
from gateway.workers.image_queue import WaitRequest
from gateway.workers.pool import ModelUnavailable, Pool
from gateway.workers.worker import Worker
from services.errors import DeadlineExceeded, NoWorker

# Of one picture in all, those included that no worker is to blame for, such as its drain.
MAX_ATTEMPTS = 10
# What another worker may do better; anything else would fail there, too.
_SECOND_CHANCE = {"WORKER_EVICTED", "WORKER_LOST", "WORKER_STALLED", "WORKER_BROKEN", "NOT_READY", "INTERNAL"}
# After these the same worker would answer the same.
_FOR_ANOTHER = {"WORKER_BROKEN", "INTERNAL"}
# These say nothing of the picture.
_GOING_AWAY = {"WORKER_EVICTED", "NOT_READY"}


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
    """What one piece of work failed of so far, and where; raises it when enough has been tried.

    `picture` is what it makes, and what is named as the cause where worker after worker fails of it.
    """

    def __init__(self, max_workers: int, *, picture: str = "") -> None:
        self._max_workers = max_workers
        self._picture = picture
        self._errors: list[StageError] = []
        # Workers that would answer the same again, and those that may do better after a restart.
        self._useless: list[str] = []
        self._unlucky: list[str] = []
        # Those that had no room since it was last waited for.
        self.full: list[str] = []
        # Workers that failed as they made it, and those of them that others had their pictures on, too.
        self._num_blamed = self._num_lost = 0

    def add(self, worker: Worker, error: StageError) -> None:
        self._errors.append(error)
        (self._useless if error.reason in _FOR_ANOTHER else self._unlucky).append(worker.address)
        is_blamed = not error.is_in_queue and error.reason not in _GOING_AWAY
        self._num_blamed += is_blamed
        self._num_lost += is_blamed and error.reason not in _FOR_ANOTHER
        if error.reason not in _SECOND_CHANCE or len(self._errors) >= MAX_ATTEMPTS:
            raise error
        if self._num_blamed < self._max_workers:
            return
        if self._max_workers == 1 or not self._picture:
            raise error
        raise StageError(
            f"{self._picture} is given up: {self._num_blamed} workers failed as they made it; the last one: {error}",
            status=grpc.StatusCode.INTERNAL,
            reason="IMAGE_POISONED",
        )

    def has_another(self, pool: Pool, model_digest: str, full: Worker) -> bool:
        """Whether there is a worker that may have room, where this one has none."""
        self.full.append(full.address)
        return pool.has(model_digest, exclude=[*self._useless, *self.full])

    @property
    def last(self) -> StageError | None:
        return self._errors[-1] if self._errors else None

    @property
    def may_wait(self) -> bool:
        """Whether a worker that comes up could do better; after some failures only one that is there already."""
        return self.last is None or self.last.reason not in _FOR_ANOTHER

    @property
    def must_be_alone(self) -> bool:
        """Whether one more loss is the last: then nobody else's picture may have been the cause of it."""
        return bool(self._picture) and self._num_lost > 0 and self._num_blamed == self._max_workers - 1

    async def choose(
        self,
        pool: Pool,
        model_digest: str,
        patience: RetryPolicy | None = None,
        *,
        waiter: WaitRequest | None = None,
        exclusive: bool = False,
    ) -> Worker:
        """A worker that may do better, now or with patience. Raises the last failure where there is none, else NoWorker."""
        wait_s = min(patience.worker_timeout_s, patience.timeout_s()) if patience and self.may_wait else 0.0
        try:
            return await pool.choose(
                model_digest,
                exclude=self._useless,
                avoid=[*self._unlucky, *self.full],
                exclusive=exclusive,
                patience_s=wait_s,
                waiter=waiter,
            )
        except ModelUnavailable:
            raise
        except NoWorker:
            # The failure of the last worker explains more than the absence of others.
            if self.last is not None:
                raise self.last from None
            raise
