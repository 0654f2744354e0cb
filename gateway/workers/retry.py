"""The retry loop: one image, or the CLIP scores of some, from whichever worker can make it.

What a stage delivered is kept. Only what is missing is asked for again, with the same index and seed, so the image is
the same on every worker.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from gateway.stages import Job
from gateway.workers.call import stream_image
from gateway.workers.errors import StageError
from gateway.workers.image_queue import OnPosition, WaitRequest
from gateway.workers.pool import ModelUnavailable, Pool
from gateway.workers.retry_policy import FailureHistory, RetryPolicy
from gateway.workers.worker import Worker
from services.errors import NoWorker, TriptychError
from services.serving.tracing.log_fields import logging_with
from triptych.v1.stage_pb2 import StageEvent

# A full queue is no failure of the worker: an image waits for room this long in all.
QUEUE_PATIENCE_S = 60.0

Response = TypeVar("Response")


@dataclass(frozen=True)
class AttemptStarted:
    """A worker has been asked, for the `attempt`-th time; `same_worker`: again, since its queue was full before."""

    worker: Worker
    attempt: int
    same_worker: bool = False


@dataclass(frozen=True)
class AttemptFailed:
    """The attempt failed, and another worker is asked."""

    error: TriptychError


@dataclass(frozen=True)
class NoWorkerYet:
    """No worker can be asked now, after an attempt or before the first; the loop waits for one."""

    error: TriptychError


AttemptEvent = AttemptStarted | AttemptFailed | NoWorkerYet | StageEvent


def generate_with_retries(
    pool: Pool,
    job: Job,
    model_digest: str,
    retry_policy: RetryPolicy,
    *,
    num_attempts: int = 0,
    on_position: OnPosition = lambda position, wait_s: None,
) -> AsyncGenerator[AttemptEvent]:
    """Yields what happens until the image and its timing are there; closing it cancels the work.

    `num_attempts` were made before. `on_position` is called with its position while it waits for a worker with room.
    Raises NoWorker, DeadlineExceeded or StageError.
    """
    return call_with_retries(
        pool,
        lambda worker: stream_image(pool, worker, job, retry_policy),
        model_digest,
        retry_policy,
        image=f"{pool.stage.name}-{job.index}",
        num_attempts=num_attempts,
        wait_for_room=lambda: WaitRequest(job.caller, retry_policy.timeout_s(), on_position),
    )


async def call_with_retries(
    pool: Pool,
    call: Callable[[Worker], AsyncGenerator[Response]],
    model_digest: str,
    retry_policy: RetryPolicy,
    *,
    image: str = "",
    num_attempts: int = 0,
    wait_for_room: Callable[[], WaitRequest] | None = None,
) -> AsyncGenerator[Response | AttemptStarted | AttemptFailed | NoWorkerYet]:
    """Yields the responses of `call` from the first worker where it ends without a StageError, and each attempt.

    `image` names the one that is made; a call without it does not count as one of the worker's images.
    """
    failures = FailureHistory(retry_policy.max_workers, image=image)
    queue_full_until = asyncio.get_running_loop().time() + QUEUE_PATIENCE_S
    queue_full: Worker | None = None
    pending_failure: StageError | None = None
    timeout_s = 0.0
    while True:
        if pending_failure is not None and failures.is_last_chance:
            # The image may have to wait until a worker has nothing else to do.
            yield AttemptFailed(pending_failure)
            pending_failure = None
        try:
            async with pool.acquire(
                model_digest,
                exclude=failures.excluded,
                avoid=failures.avoided,
                exclusive=failures.is_last_chance,
                timeout_s=timeout_s,
                wait_for_room=wait_for_room() if wait_for_room else None,
                num_images=1 if image else 0,
            ) as worker:
                if pending_failure is not None:
                    yield AttemptFailed(pending_failure)
                    pending_failure = None
                same_worker, queue_full, timeout_s = worker is queue_full, None, 0.0
                num_attempts += not same_worker
                yield AttemptStarted(worker, num_attempts, same_worker)
                try:
                    with logging_with(worker=worker.address):
                        async with aclosing(call(worker)) as responses:
                            async for response in responses:
                                yield response
                    return
                except StageError as error:
                    failure = error
        except NoWorker as error:
            # What the last worker failed with explains more than that no other is there.
            reason = error if isinstance(error, ModelUnavailable) else failures.last or error
            if timeout_s or not (retry_policy.worker_timeout_s and failures.may_wait):
                raise reason from None
            yield NoWorkerYet(reason)
            pending_failure = None
            timeout_s = min(retry_policy.worker_timeout_s, retry_policy.timeout_s())
            continue
        if failure.reason != "QUEUE_FULL":
            failures.add(worker.address, failure)
            pending_failure = failure
            continue
        queue_full = worker
        failures.queue_full.append(worker.address)
        if not pool.has_available(model_digest, exclude=[*failures.excluded, *failures.queue_full]):
            await _wait_for_room(failure, queue_full_until)
            failures.queue_full.clear()


async def _wait_for_room(error: StageError, until: float) -> None:
    """Sleeps until the worker may have room; raises the error if that is too late."""
    delay_s = error.retry_after_s or 1.0
    if asyncio.get_running_loop().time() + delay_s > until:
        raise error
    await asyncio.sleep(delay_s)
