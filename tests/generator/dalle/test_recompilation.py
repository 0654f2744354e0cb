"""What serving may never do: compile."""

import asyncio
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import pytest

from services.engine.engine import Engine
from services.engine.events import Finished
from services.engine.stepper import JobRequest
from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.stepper import GeneratorStepper
from tests.bench.compilations import Compilations

PROMPTS = ["", "a red house", "two cats by the sea, in a style that takes many more tokens than there are"]


@pytest.fixture
def compilations():
    return Compilations()


def jobs(count: int, seed: int) -> list[JobRequest[GenerateJob]]:
    """No two with the same settings."""
    return [
        JobRequest(
            i, GenerateJob(PROMPTS[(seed + i) % 3], seed + i, 0.5 + i, 7 * i % 5, 1 - i / 9, 3.0 + seed), 3
        )
        for i in range(count)
    ]


async def make(engine: Engine[GenerateJob], tickets: Sequence[JobRequest[GenerateJob]], caller: str) -> int:
    async with engine.submit(tickets, caller=caller) as events:
        return sum([isinstance(event, Finished) async for event in events])


@pytest.mark.parametrize("tokens_per_dispatch", [1, 4])
async def test_nothing_at_all_is_compiled_while_requests_come_and_go(
    model, compilations, tokens_per_dispatch
):
    stepper = GeneratorStepper(model, num_slots=5, tokens_per_dispatch=tokens_per_dispatch)
    stepper.warm_up()
    before = compilations.count
    async with Engine(stepper, max_queue=64) as engine:
        counts = await asyncio.gather(*(make(engine, jobs(n, seed=10 * n), str(n)) for n in (1, 2, 3, 4, 6)))
        async with engine.submit(jobs(4, seed=99), caller="leaves") as events:
            await anext(events)
        counts.append(await make(engine, jobs(2, seed=5), "late"))
    assert counts == [1, 2, 3, 4, 6, 2]
    assert compilations.count == before


def test_a_compilation_is_counted(compilations):
    before = compilations.count
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))
    assert compilations.count > before
