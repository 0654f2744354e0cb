"""Many callers at once while something dies again and again, and two gateways that stand in for each other."""

import asyncio
import itertools
import random
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from gateway.access.caller import Caller as KnownCaller
from gateway.access.token_file import new_token, write_tokens
from gateway.journal.leases import LEASE_S
from tests.faults.processes import Process, cluster, free_port, gateway_command
from tests.faults.run_observer import Caller, Watcher, check_whole, spec
from tests.gateway.postgresql import postgresql_server
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import STAGE_REFINE

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.faults, pytest.mark.timeout(900)]

KILL_EVERY_S = 5.0


def tokens_of(folder, num_callers):
    """A file of tokens, and the tokens."""
    made = [new_token(KnownCaller(f"caller-{number}")) for number in range(num_callers)]
    write_tokens(folder / "tokens.json", [entry for _, entry in made])
    return folder / "tokens.json", [token for token, _ in made]


@asynccontextmanager
async def dying(kill):
    """Kills something every few seconds inside the block; gives a list that has an entry for each time."""
    killed = []

    async def keep_killing():
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            killed.append(await kill())

    task = asyncio.create_task(keep_killing())
    try:
        yield killed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def make_runs(started, token, num_runs, seeds):
    """Asks for runs one after the other, each by a request_id, and holds each to be whole."""
    async with Caller(started.address, token) as caller:
        for _ in range(num_runs):
            asked = spec(images=2, seed=next(seeds))
            name = await caller.create(asked, f"{token[-8:]}-{asked.seed}")
            watcher = Watcher(started.address, name, token)
            await watcher.finished()
            await check_whole(caller, started.address, name, asked, [watcher])


async def test_200_runs_of_20_callers_while_a_worker_dies_every_5_s(tmp_path, row):
    file, tokens = tokens_of(tmp_path, 20)
    seeds = itertools.count(1000, 10)
    rng = random.Random(1)
    async with cluster(tmp_path, gateway_options=["--tokens", str(file)], step_s=0.05) as started:

        async def kill():
            victim = rng.choice(started.all_workers())
            await victim.kill()
            await victim.start()
            return victim.name

        began_at = time.monotonic()
        async with dying(kill) as killed, asyncio.TaskGroup() as callers:
            for token in tokens:
                callers.create_task(make_runs(started, token, 10, seeds))
        row(
            f"200 runs, 1200 pictures, {len(killed)} workers killed, {time.monotonic() - began_at:.0f} s, all whole"
        )
        assert killed


async def test_60_runs_of_6_callers_while_the_gateway_dies_every_5_s(tmp_path, row):
    file, tokens = tokens_of(tmp_path, 6)
    seeds = itertools.count(1000, 10)
    async with cluster(tmp_path, gateway_options=["--tokens", str(file)], step_s=0.05) as started:

        async def kill():
            await started.gateway.kill()
            await started.gateway.start()

        began_at = time.monotonic()
        async with dying(kill) as killed, asyncio.TaskGroup() as callers:
            for token in tokens:
                callers.create_task(make_runs(started, token, 10, seeds))
        row(
            f"60 runs, 360 pictures, gateway killed {len(killed)} times, {time.monotonic() - began_at:.0f} s, all whole"
        )
        assert killed


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two_gateways(tmp_path_factory):
    """Two gateways on one PostgreSQL and one folder of pictures, over the same workers."""
    folder = tmp_path_factory.mktemp("two")
    async with AsyncExitStack() as stack:
        socket = stack.enter_context(postgresql_server())
        journal = f"postgresql://postgres@/postgres?host={socket}"
        started = await stack.enter_async_context(cluster(folder, journal=journal))
        addresses = {stage: [one.address for one in workers] for stage, workers in started.workers.items()}
        command = gateway_command(
            addresses, journal=journal, store=str(folder / "pictures"), port=free_port()
        )
        second = Process("second gateway", command, log=folder / "second.log")
        stack.push_async_callback(second.close)
        await second.start()
        yield started, second


async def held_run(started, asked):
    """A run of the first gateway, held in its refiner; and the worker that holds."""
    await started.mend()
    async with Caller(started.address) as caller:
        await caller.sees_workers(2)
        victim = started.workers["refiner"][0]
        victim.forget_holding()
        await victim.order(hold_at=3)
        name = await caller.create(asked, f"run-{asked.seed}")
    await victim.heard("holding")
    return name, victim


async def test_a_watcher_at_one_gateway_sees_a_run_of_the_other(two_gateways, row):
    started, second = two_gateways
    asked = spec(seed=1)
    name, victim = await held_run(started, asked)
    here, there = Watcher(started.address, name), Watcher(second.address, name)
    await victim.order(go=True)
    told_here = (await here.finished(), time.monotonic())
    told_there = (await there.finished(), time.monotonic())
    async with Caller(second.address) as caller:
        await check_whole(caller, second.address, name, asked, [here, there])
    row(f"the end was seen there {told_there[1] - told_here[1]:.2f} s after it was seen here")


async def test_the_same_request_id_at_both_gateways_makes_one_run(two_gateways, row):
    started, second = two_gateways
    asked = spec(seed=2)
    async with Caller(started.address) as one, Caller(second.address) as other:
        await one.sees_workers(2)
        await other.sees_workers(2)
        names = await asyncio.gather(
            *(caller.create(asked, "at both") for caller in (one, other) for _ in range(5))
        )
        assert len(set(names)) == 1
        watcher = Watcher(second.address, names[0])
        await watcher.finished()
        await check_whole(one, started.address, names[0], asked, [watcher])
    row("10 times asked of two gateways, 1 run")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda one: one.name)
async def test_one_gateway_goes_on_with_the_runs_of_the_other(two_gateways, row, number):
    started, second = two_gateways
    asked = spec(seed=3 + int(number))
    name, victim = await held_run(started, asked)
    watcher = Watcher(second.address, name)
    await watcher.sees(
        lambda event: event.HasField("stage_started") and event.stage_started.stage == STAGE_REFINE
    )
    before = watcher.last_sequence
    ended_at = time.monotonic()
    started.gateway.send(number)
    await victim.order(go=True)
    await watcher.finished()
    took_s = time.monotonic() - ended_at
    async with Caller(second.address) as caller:
        await check_whole(caller, second.address, name, asked, [watcher])
    row(f"from event {before} on; the run had its end after {took_s:.1f} s")
    if number == signal.SIGTERM:
        await started.gateway.ended()
    await started.mend()
    # The one that comes back, and may have thought that the run was its own, reports the same before long.
    async with Caller(started.address) as caller:
        async with asyncio.timeout(LEASE_S):
            while (await caller.get(name)).state != RunState.RUN_STATE_SUCCEEDED:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.05)
        await check_whole(caller, started.address, name, asked, [watcher])
