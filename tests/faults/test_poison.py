"""A picture that kills every worker that makes it, among those of others, while dead workers are started again."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from tests.faults.processes import cluster
from tests.faults.run_observer import Caller, Watcher, check_whole, spec
from triptych.v1.pipeline_pb2 import RunState

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.faults]

POISONED = spec(images=4, seed=7000)
POISON_SEED = 7001
NUM_OTHERS = 12


@asynccontextmanager
async def started_again(workers):
    """Restarts workers that have died, as a supervisor would; gives a list of the deaths."""
    deaths = []

    async def look_after(worker):
        while True:
            await worker.ended()
            deaths.append(worker.name)
            await worker.start()

    tasks = [asyncio.create_task(look_after(worker)) for worker in workers]
    try:
        yield deaths
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def make_runs(address, seeds):
    async with Caller(address) as caller:
        for seed in seeds:
            asked = spec(images=3, seed=seed)
            name = await caller.create(asked)
            watcher = Watcher(address, name)
            await watcher.finished()
            await check_whole(caller, address, name, asked, [watcher])


async def test_a_picture_that_kills_its_workers_costs_three_and_no_picture_of_others(tmp_path, row):
    async with cluster(tmp_path, step_s=0.05, dies_of_seed=POISON_SEED) as started:
        began_at = time.monotonic()
        async with started_again(started.workers["generator"]) as deaths, Caller(started.address) as caller:
            others = asyncio.create_task(make_runs(started.address, range(100, 100 + 10 * NUM_OTHERS, 10)))
            name = await caller.create(POISONED)
            watcher = Watcher(started.address, name)
            await watcher.finished()
            await others
            run = await caller.get(name)
        assert run.state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED
        assert run.error.reason == "IMAGE_POISONED"
        assert run.error.message.startswith("generate-1 is given up: 3 workers failed as they made it")
        assert len(run.images) == 9
        assert len(deaths) == 3
        row(f"named after 3 workers, {NUM_OTHERS} other runs whole, {time.monotonic() - began_at:.0f} s")
