"""The network to a worker of each stage breaks: bytes vanish, connections end, connections are reset."""

import time
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.faults.conftest import mended
from tests.faults.network import namespace, why_no_namespace
from tests.faults.processes import WORKERS, cluster
from tests.faults.run_observer import check_whole
from tests.faults.test_workers import NOTICED_WITHIN_S, attempts, begin_and_hold, cases, reasons
from tests.relay import relay

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relayed(tmp_path_factory):
    """The first worker of each stage is reached through a relay."""
    async with AsyncExitStack() as stack:
        relays = {}

        async def through_relay(worker):
            relays[worker.name] = await stack.enter_async_context(relay(worker.address))
            return relays[worker.name].address

        yield (
            await stack.enter_async_context(
                cluster(tmp_path_factory.mktemp("relayed"), reach_first=through_relay)
            ),
            relays,
        )


@pytest_asyncio.fixture(loop_scope="module")
async def scene(relayed):
    started, relays = relayed
    for one in relays.values():
        one.mend()
    async with mended(started) as made:
        made.networks = relays
        yield made
        for one in relays.values():
            one.mend()


async def break_and_finish(scene, row, stage, step, harm):
    """Breaks what a picture comes over while it is made, and holds that it is made elsewhere."""
    victim, asked, name, watcher = await begin_and_hold(scene, stage, step)
    broken_at = time.monotonic()
    harm(scene.networks[victim.name])
    await watcher.sees(lambda event: event.HasField("warning"))
    noticed_s = time.monotonic() - broken_at
    await victim.order(go=True)
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    assert attempts(log) == 2
    row(f"noticed after {noticed_s:.1f} s, {', '.join(sorted(reasons(log)))}, made elsewhere")
    assert noticed_s < NOTICED_WITHIN_S


@cases()
async def test_relay_swallows_everything(scene, row, stage, step):
    await break_and_finish(scene, row, stage, step, lambda network: network.swallow())


@cases()
async def test_relay_ends_connections(scene, row, stage, step):
    await break_and_finish(scene, row, stage, step, lambda network: network.drop())


@cases()
async def test_relay_resets_connections(scene, row, stage, step):
    await break_and_finish(scene, row, stage, step, lambda network: network.reset())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def apart(tmp_path_factory):
    """The first worker of each stage has a network namespace of its own."""
    if problem := why_no_namespace():
        pytest.skip(problem)
    async with AsyncExitStack() as stack:
        networks = {f"{stage} 0": stack.enter_context(namespace()) for stage in WORKERS}
        yield (
            await stack.enter_async_context(cluster(tmp_path_factory.mktemp("apart"), networks=networks)),
            networks,
        )


@pytest_asyncio.fixture(loop_scope="module")
async def far_scene(apart):
    started, networks = apart
    async with mended(started) as made:
        made.networks = networks
        yield made
        for one in networks.values():
            one.mend()


@cases()
async def test_namespace_drops_packets(far_scene, row, stage, step):
    await break_and_finish(far_scene, row, stage, step, lambda network: network.swallow())


@cases()
async def test_namespace_resets_connections(far_scene, row, stage, step):
    await break_and_finish(far_scene, row, stage, step, lambda network: network.reset())
