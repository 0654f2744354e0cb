"""The disk is full, slow, read-only or damaged, below the pictures and below the journal."""

import asyncio
import time

import grpc
import pytest
import pytest_asyncio

from tests.faults.disks import slow_disk_prefix, small_disk, why_no_slow_disk, why_no_small_disk
from tests.faults.processes import cluster
from tests.faults.run_observer import Caller, Watcher, check_log, check_whole, expected_pictures, ready, spec
from triptych.client import read_details
from triptych.v1 import pipeline_pb2
from triptych.v1.pipeline_pb2 import RunState

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

PICTURES_BYTES = 512 * 2**10
# A write-ahead log grows to 4 MiB before it is folded into the database.
JOURNAL_BYTES = 16 * 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_small_disk(tmp_path_factory):
    """A gateway with its pictures on one small disk, and its journal on another part of the same."""
    folder = tmp_path_factory.mktemp("small")
    if problem := why_no_small_disk(folder):
        pytest.skip(problem)
    with small_disk(folder / "disk", PICTURES_BYTES) as disk:
        async with cluster(
            folder, num_workers=1, store=str(disk.path / "pictures"), gateway_prefix=disk.prefix
        ) as started:
            yield started, disk


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_small_journal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    if problem := why_no_small_disk(folder):
        pytest.skip(problem)
    with small_disk(folder / "disk", JOURNAL_BYTES) as disk:
        async with cluster(
            folder, num_workers=1, journal=str(disk.path / "journal.db"), gateway_prefix=disk.prefix
        ) as started:
            yield started, disk


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_slow_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    if problem := why_no_slow_disk(folder):
        pytest.skip(problem)
    prefix = slow_disk_prefix(SLOW_S, folder / "strace.log")
    async with cluster(folder, num_workers=1, gateway_prefix=prefix) as started:
        yield started


SLOW_S = 0.5


def reasons(events):
    return {event.warning.reason for event in events if event.HasField("warning")}


async def held_at(started, stage, step):
    victim = started.workers[stage][0]
    victim.forget_holding()
    await victim.order(hold_at=step)
    return victim


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("generator"),
        pytest.param("refiner", marks=pytest.mark.faults),
        pytest.param("upscaler", marks=pytest.mark.faults),
    ],
)
async def test_pictures_do_not_fit(on_small_disk, row, stage):
    started, disk = on_small_disk
    asked = spec()
    victim = await held_at(started, stage, 6)
    async with Caller(started.address) as caller:
        await caller.sees_workers(1)
        name = await caller.create(asked)
        watcher = Watcher(started.address, name)
        await victim.heard("holding")
        disk.fill()
        await victim.order(go=True)
        await watcher.finished()
        disk.free()
        log = await check_log(started.address, name, [watcher])
        assert reasons(log) == {"STORE_FULL"}
        assert log[-1].finished.state == RunState.RUN_STATE_FAILED
        assert log[-1].finished.error.reason == "STORE_FULL"
        # What was finished before is there; nothing else is said to be.
        pictures = expected_pictures(asked, name)
        for image in ready(log):
            assert await caller.download(image) == pictures[image]
        again = spec(seed=time.time_ns())
        name = await caller.create(again)
        watcher = Watcher(started.address, name)
        await watcher.finished()
        await check_whole(caller, started.address, name, again, [watcher])
    row(
        f"FAILED with STORE_FULL, {len(ready(log))} earlier pictures kept; with room again the next run succeeds"
    )


@pytest.mark.faults
async def test_pictures_on_a_read_only_disk(on_small_disk, row):
    started, disk = on_small_disk
    async with Caller(started.address) as caller:
        await caller.sees_workers(1)
        disk.make_read_only()
        name = await caller.create(spec())
        watcher = Watcher(started.address, name)
        await watcher.finished()
        disk.make_writable()
        log = await check_log(started.address, name, [watcher])
    assert reasons(log) == {"STORE_UNAVAILABLE"}
    assert log[-1].finished.state == RunState.RUN_STATE_FAILED
    row("FAILED with STORE_UNAVAILABLE")


@pytest.mark.faults
async def test_a_damaged_picture_is_reported_and_not_delivered(on_small_disk, row):
    started, disk = on_small_disk
    asked = spec(seed=time.time_ns())
    async with Caller(started.address) as caller:
        await caller.sees_workers(1)
        name = await caller.create(asked)
        watcher = Watcher(started.address, name)
        await watcher.finished()
        [image] = [one for one in (await caller.get(name)).images if one.name.endswith("refine-1")]
        path = disk.from_here / "pictures" / image.sha256[:2] / image.sha256[2:]
        path.write_bytes(path.read_bytes()[:-1])
        await started.gateway.kill()
        await started.gateway.start()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await caller.download(image.name)
        assert failed.value.code() == grpc.StatusCode.DATA_LOSS
        assert read_details(failed.value).reason == "IMAGE_CORRUPTED"
        await check_log(started.address, name, [watcher_without_files(watcher, image.name)])
    row("DATA_LOSS for that picture alone, the events are all there")


def watcher_without_files(watcher, name):
    for event in watcher.events:
        if event.image_ready.image.name == name:
            event.image_ready.image.data = b""
    return watcher


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["generator", "refiner", "upscaler"])
async def test_the_journal_does_not_fit(on_small_journal, row, stage):
    started, disk = on_small_journal
    asked = spec(images=4)
    victim = await held_at(started, stage, 3)
    async with Caller(started.address) as caller:
        await caller.sees_workers(1)
        name = await caller.create(asked)
        watcher = Watcher(started.address, name)
        await victim.heard("holding")
        disk.fill()
        await victim.order(go=True)
        refused = await refused_reason(caller)
        disk.free()
        await watcher.finished()
        await check_whole(caller, started.address, name, asked, [watcher])
    assert refused == "JOURNAL_FAILED"
    row("new runs refused with JOURNAL_FAILED; with room again the run went on to its end")


@pytest.mark.faults
async def test_killed_while_the_journal_does_not_fit(on_small_journal, row):
    started, disk = on_small_journal
    asked = spec(images=4)
    victim = await held_at(started, "refiner", 3)
    async with Caller(started.address) as caller:
        await caller.sees_workers(1)
        name = await caller.create(asked)
        watcher = Watcher(started.address, name)
        await victim.heard("holding")
        disk.fill()
        await victim.order(go=True)
        assert await refused_reason(caller) == "JOURNAL_FAILED"
        await started.gateway.kill()
        disk.free()
        await started.gateway.start()
        await watcher.finished()
        await check_whole(caller, started.address, name, asked, [watcher])
    row("the run went on from what the journal had")


async def refused_reason(caller):
    """What a new run is refused with, once it is."""
    async with asyncio.timeout(60):
        while True:
            try:
                await caller.stub.CreateRun(pipeline_pb2.CreateRunRequest(spec=spec(images=1)), timeout=30)
            except grpc.aio.AioRpcError as error:
                return read_details(error).reason


@pytest.mark.faults
async def test_a_slow_disk_slows_and_breaks_nothing(on_slow_disk, row):
    started = on_slow_disk
    asked = spec(images=3)
    async with Caller(started.address) as caller:
        await caller.sees_workers(1)
        began_at = time.monotonic()
        name = await caller.create(asked)
        watcher = Watcher(started.address, name)
        waits = []
        while not watcher.is_done:
            asked_at = time.monotonic()
            await caller.stub.ListModels(pipeline_pb2.ListModelsRequest(), timeout=30)
            waits.append(time.monotonic() - asked_at)
            await asyncio.sleep(0.02)
        took_s = time.monotonic() - began_at
        await check_whole(caller, started.address, name, asked, [watcher])
    row(
        f"every sync {SLOW_S:g} s: the run took {took_s:.1f} s, meanwhile calls were answered within {max(waits):.2f} s"
    )


@pytest.mark.faults
async def test_killed_on_a_slow_disk(on_slow_disk, row):
    started = on_slow_disk
    asked = spec(images=3)
    async with Caller(started.address) as caller:
        await caller.sees_workers(1)
        name = await caller.create(asked)
        watcher = Watcher(started.address, name)
        for number in (1, 4, 7):
            await watcher.sees(lambda event, number=number: len(ready(watcher.events)) >= number)
            await started.gateway.kill()
            await started.gateway.start()
        await watcher.finished()
        await check_whole(caller, started.address, name, asked, [watcher])
    row(f"killed 3 times, {watcher.num_connections} connections")
