"""Generates one image with retries: another worker if the first is lost or full.

What a stage delivered is kept; only what is missing is asked for again, with the same index and seed, so the picture
is the same wherever it is made.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from gateway.stages import Job
from gateway.workers.call import stream_image
from gateway.workers.errors import StageError
from gateway.workers.image_queue import OnPosition, WaitRequest
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import FailureHistory, RetryPolicy
from gateway.workers.worker import Worker
from services.errors import DeadlineExceeded, TriptychError
from triptych.v1.stage_pb2 import StageEvent

log = logging.getLogger(__name__)

# A full queue is no failure of the worker: wait for it this long in all.
QUEUE_PATIENCE_S = 60.0


@dataclass(frozen=True)
class AttemptStarted:
    """The picture has been asked of a worker, for the `attempt`-th time; again where its queue was full before."""

    worker: Worker
    attempt: int
    same_worker: bool = False


@dataclass(frozen=True)
class AttemptFailed:
    """The attempt failed, and another worker is asked."""

    error: TriptychError


@dataclass(frozen=True)
class NoWorkerYet:
    """There is no worker that the picture could be asked of now, after an attempt or before the first."""

    error: TriptychError


AttemptEvent = AttemptStarted | AttemptFailed | NoWorkerYet | StageEvent


async def generate_with_retries(
    pool: Pool,
    job: Job,
    model_digest: str,
    patience: RetryPolicy,
    *,
    num_attempts: int = 0,
    on_position: OnPosition = lambda position, wait_s: None,
) -> AsyncGenerator[AttemptEvent]:
    """Yields what happens until the picture and its timing are there; closing it cancels the work.

    `num_attempts` were made before. `on_position` is called with its position while it waits for a worker. Raises
    NoWorker, DeadlineExceeded or StageError when the picture cannot be had.
    """
    full: Worker | None = None
    pending_failure: StageError | None = None
    failures = FailureHistory(patience.max_workers, picture=f"{pool.stage.name}-{job.index}")
    queue_until = asyncio.get_running_loop().time() + QUEUE_PATIENCE_S
    while True:
        exclusive = failures.must_be_alone
        if pending_failure is not None and exclusive:
            # It may have to wait until a worker has nothing else to do.
            yield AttemptFailed(pending_failure)
            pending_failure = None
        waiter = WaitRequest(job.caller, patience.timeout_s(), on_position)
        try:
            worker = await failures.choose(pool, model_digest, waiter=waiter, exclusive=exclusive)
        except DeadlineExceeded:
            raise
        except TriptychError as error:
            if not (patience.worker_timeout_s and failures.may_wait):
                raise
            yield NoWorkerYet(error)
            pending_failure = None
            worker = await failures.choose(pool, model_digest, patience, waiter=waiter, exclusive=exclusive)
        # Nothing may come between here and the block that the worker is counted in.
        same_worker, full = worker is full, None
        num_attempts += not same_worker
        has_picture = False
        try:
            with pool.working(worker, exclusive=exclusive):
                if pending_failure is not None:
                    yield AttemptFailed(pending_failure)
                    pending_failure = None
                yield AttemptStarted(worker, num_attempts, same_worker)
                async with aclosing(stream_image(pool, worker, job, patience)) as events:
                    async for event in events:
                        if event.HasField("image"):
                            has_picture = True
                            pool.report_succeeded(worker)
                        yield event
            return
        except StageError as error:
            if has_picture:
                log.info(
                    "%s %s was lost after the picture: %s", pool.stage.worker_name, worker.address, error
                )
                return
            if error.reason == "QUEUE_FULL":
                full = worker
                if not failures.has_another(pool, model_digest, worker):
                    await _wait_for_room(error, queue_until)
                    failures.full.clear()
                continue
            failures.add(worker, error)
            pending_failure = error


async def _wait_for_room(error: StageError, until: float) -> None:
    """Sleeps until the worker may have room; raises the error when the patience has an end."""
    delay_s = error.retry_after_s or 1.0
    if asyncio.get_running_loop().time() + delay_s > until:
        raise error
    await asyncio.sleep(delay_s)
