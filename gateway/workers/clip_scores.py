"""CLIP scores of images from a refiner, with the same retries as images."""

import functools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import grpc

from gateway.workers.call import end_call_span, start_call_span
from gateway.workers.errors import StageError, from_rpc
from gateway.workers.pool import Pool
from gateway.workers.retry import call_with_retries
from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.worker import Worker
from services.serving.request_log import current_traceparent
from triptych.v1.refiner_pb2 import RankRequest
from triptych.v1.stage_pb2 import ImageData

# Sketches and variations are 256 px: so many of them stay far below the limit of a message.
PICTURES_PER_CALL = 16


async def score(
    pool: Pool,
    prompt: str,
    names: Sequence[str],
    read: Callable[[str], Awaitable[ImageData]],
    model_digest: str,
    retry_policy: RetryPolicy,
) -> list[float]:
    """One score for each image, in order. Raises NoWorker, DeadlineExceeded or StageError."""
    scores: list[float] = []
    for first in range(0, len(names), PICTURES_PER_CALL):
        images = [await read(name) for name in names[first : first + PICTURES_PER_CALL]]
        request = RankRequest(prompt=prompt, images=images)
        attempts = call_with_retries(
            pool, functools.partial(_rank, pool, request, retry_policy), model_digest, retry_policy
        )
        async with aclosing(attempts) as events:
            scores += [event async for event in events if isinstance(event, float)]
    return scores


async def _rank(
    pool: Pool, request: RankRequest, retry_policy: RetryPolicy, worker: Worker
) -> AsyncGenerator[float]:
    """Yields the scores of one call; raises StageError."""
    where = f"{pool.stage.worker_name} {worker.address}"
    timeout_s = min(retry_policy.timeout_s(), retry_policy.stall_timeout_s)
    span = start_call_span(f"{pool.stage.service}/Rank", worker.address)
    traceparent = span.traceparent or current_traceparent()
    metadata = [("traceparent", traceparent)] if traceparent else []
    try:
        stub = pool.stage.make_stub(worker.channel)
        answer = await stub.Rank(request, timeout=timeout_s, metadata=metadata)
        scores = _validate(list(answer.scores), len(request.images), where)
    except (grpc.aio.AioRpcError, StageError) as failure:
        error = failure if isinstance(failure, StageError) else from_rpc(failure, where)
        error.is_in_queue = False
        pool.report_failed(worker, error)
        end_call_span(span, error.status.name, error.reason)
        raise error from None
    except BaseException:
        end_call_span(span, "CANCELLED", "")
        raise
    end_call_span(span, "OK", "")
    for score in scores:
        yield score


def _validate(scores: list[float], num_images: int, where: str) -> list[float]:
    if len(scores) != num_images or not all(map(math.isfinite, scores)):
        raise StageError(
            f"{where} was asked for {num_images} scores and answered with {scores}", reason="WORKER_BROKEN"
        )
    return scores
