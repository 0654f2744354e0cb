"""CLIP scores of images from a refiner, with retries on others."""

import math
from collections.abc import Awaitable, Callable, Sequence

import grpc

from gateway.workers.errors import StageError, from_rpc
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import FailureHistory, RetryPolicy
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
    patience: RetryPolicy,
) -> list[float]:
    """One score for each picture, in order. Raises NoWorker, DeadlineExceeded or StageError."""
    scores: list[float] = []
    for first in range(0, len(names), PICTURES_PER_CALL):
        pictures = [await read(name) for name in names[first : first + PICTURES_PER_CALL]]
        scores += await _ask(pool, RankRequest(prompt=prompt, images=pictures), model_digest, patience)
    return scores


async def _ask(pool: Pool, request: RankRequest, model_digest: str, patience: RetryPolicy) -> list[float]:
    failures = FailureHistory(patience.max_workers)
    while True:
        worker = await failures.choose(pool, model_digest, patience)
        where = f"{pool.stage.worker_name} {worker.address}"
        timeout_s = min(patience.timeout_s(), patience.stall_timeout_s)
        try:
            answer = await pool.stage.make_stub(worker.channel).Rank(request, timeout=timeout_s)
            return _check(list(answer.scores), len(request.images), where)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error, where)
        except StageError as error:
            failure = error
        failure.is_in_queue = False
        pool.report_failed(worker, failure)
        failures.add(worker, failure)


def _check(scores: list[float], num_pictures: int, where: str) -> list[float]:
    if len(scores) != num_pictures or not all(map(math.isfinite, scores)):
        raise StageError(
            f"{where} was asked for {num_pictures} scores and answered with {scores}", reason="WORKER_BROKEN"
        )
    return scores
