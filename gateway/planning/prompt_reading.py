"""Asks a generator which words of a prompt it replaces, before the run starts."""

import asyncio
import logging

import grpc

from gateway.workers.pool import Pool
from triptych.v1.generator_pb2 import GeneratorServiceReadPromptRequest
from triptych.v1.stage_pb2 import PromptReading

log = logging.getLogger(__name__)

# It is a look into a table. A worker that takes longer is not waited for: it reads the prompt itself when it draws.
TIMEOUT_S = 5.0


async def read_prompt(prompt: str, pool: Pool, model_name: str = "") -> PromptReading | None:
    """What the pool's model draws for a prompt; None if it draws every prompt as it is, or no worker answers."""
    for worker in pool.healthy:
        # Only a model that lists its words has a table of others.
        if model_name not in ("", worker.model.name) or not worker.model.vocabulary:
            continue
        request = GeneratorServiceReadPromptRequest(prompt=prompt)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await pool.stage.make_stub(worker.channel).ReadPrompt(request, timeout=TIMEOUT_S)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            log.debug("%s did not read a prompt: %s", worker.address, error)
            continue
        return PromptReading.FromString(answer.reading.SerializeToString())
    return None


def is_changed(reading: PromptReading | None, prompt: str) -> bool:
    """Whether something else is drawn than what was asked for."""
    return reading is not None and (
        reading.is_unknown or bool(reading.replacements) or reading.prompt != prompt
    )
