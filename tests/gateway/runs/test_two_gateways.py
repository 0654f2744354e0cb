"""Two gateways on one PostgreSQL and one store: each serves the runs of both."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from gateway.access.caller import Caller, CallerLimits
from gateway.runs.manager import RunLimits
from services.errors import AlreadyExists, InvalidRequest, NotFound
from tests.gateway.fake_stage import gateway_over, scripted_stages
from tests.gateway.postgresql import new_database
from tests.gateway.run_fixtures import ALL, finished, lasting, ready, run_finished, spec
from tests.waiting import underway
from triptych.v1.pipeline_pb2 import MoveRunRequest, RunState, SelectImagesRequest

SKETCHES = {"refine": None, "upscale": None}
BOUNDS = RunLimits(abandon_grace_s=0)
Selection = SelectImagesRequest.Selection


@pytest.fixture
async def database(server):
    """The URL of a database of its own."""
    return await new_database(server)


@pytest.fixture
async def stages():
    async with scripted_stages() as running:
        yield running


@pytest.fixture
async def gateways(stages, database, tmp_path):
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(gateway_over(stages, tmp_path, journal=database))
            for _ in range(2)
        ]


async def watch(gateway, name, after_sequence=0):
    return [event async for event in gateway.facade.watch_run(name, ALL, after_sequence=after_sequence)]


async def die(gateway):
    """As after kill -9, or SIGSTOP: it writes nothing more, and its lease ends. Returns what wakes it up."""
    runs, awake = gateway.runs, asyncio.Event()
    runs._heartbeats.cancel()
    commit = runs.journal._commit

    async def commit_when_awake(group):
        await awake.wait()
        return await commit(group)

    runs.journal._commit = commit_when_awake
    lease = f"UPDATE gateways SET until_ms = 0 WHERE id = '{runs.journal.gateway}'"
    await runs.journal.database.write(lambda connection: connection.exec_driver_sql(lease))
    return awake.set


@asynccontextmanager
async def locked_table(server, database, table):
    """Nobody else reads or writes the table inside the block; what it gives returns once somebody waits for that."""
    holder, observer = [
        await asyncpg.connect(host=server, user="postgres", database=database) for _ in range(2)
    ]

    async def somebody_waits():
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass"
        while not await observer.fetchval(blocked, table):
            pass

    try:
        async with holder.transaction():
            await holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield somebody_waits
    finally:
        await holder.close()
        await observer.close()


async def test_a_run_of_one_gateway_is_watched_at_the_other(gateways):
    first, second = gateways
    run = await first.facade.create_run("", spec(), ALL)
    events, same = await asyncio.gather(watch(first, run.name), watch(second, run.name))
    assert lasting(events) == lasting(same)


async def test_a_watcher_at_the_other_gateway_sees_an_event_while_the_run_goes_on(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(1)
    run = await first.facade.create_run("", spec(**SKETCHES), ALL)
    async for event in second.facade.watch_run(run.name, ALL):
        if event.HasField("image_ready"):
            assert event.image_ready.image.data
            stages.generators[0].gates[1].set()
    assert event.finished.state == RunState.RUN_STATE_SUCCEEDED


async def test_the_same_request_id_at_two_gateways_makes_one_run(gateways):
    first, second = gateways
    runs = await asyncio.gather(
        *(gateway.facade.create_run("once", spec(**SKETCHES), ALL) for gateway in (first, second) * 4)
    )
    assert len({run.name for run in runs}) == 1
    assert len((await second.facade.list_runs(ALL))[0]) == 1
    with pytest.raises(AlreadyExists):
        await second.facade.create_run("once", spec(), ALL)


async def test_a_run_is_cancelled_at_the_other_gateway(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(0, 1)
    run = await first.facade.create_run("", spec(), ALL)
    await stages.generators[0].begun[1].wait()
    assert (await second.facade.cancel_run(run.name, ALL)).state == RunState.RUN_STATE_CANCELLED
    await stages.generators[0].stopped[0].wait()


async def test_one_image_is_cancelled_at_the_other_gateway(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(0, 1)
    run = await first.facade.create_run("", spec(**SKETCHES), ALL)
    await stages.generators[0].begun[1].wait()
    await second.facade.cancel_run(run.name, ALL, [f"{run.name}/images/generate-1"])
    stages.generators[0].gates[0].set()
    assert [one.index for one in (await run_finished(first, run.name)).images] == [0]


async def test_what_the_owner_refuses_is_refused_at_the_other_gateway(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(0)
    run = await first.facade.create_run("", spec(**SKETCHES), ALL)
    with pytest.raises(InvalidRequest) as raised:
        await second.facade.cancel_run(run.name, ALL, [f"{run.name}/images/generate-9"])
    assert raised.value.field == "images[0]"
    assert raised.value.reason == "INVALID_ARGUMENT"


async def test_images_are_selected_at_the_other_gateway(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(1)
    run = await first.facade.create_run("", spec(manual={}), ALL)
    async for event in second.facade.watch_run(run.name, ALL):
        if event.HasField("image_ready"):
            break
    chosen = [Selection(image=f"{run.name}/images/generate-0", upscale={})]
    await second.facade.select_images("once", run.name, chosen, ALL)
    await second.facade.select_images("once", run.name, chosen, ALL)
    stages.generators[0].gates[1].set()
    events = await watch(first, run.name)
    assert [one.name.rpartition("/")[2] for one in ready(events, 3)] == ["upscale-0"]


async def test_the_gateway_that_carries_out_a_run_keeps_to_what_the_caller_of_the_other_may_have(
    gateways, stages
):
    first, second = gateways
    stages.generators[0].close_gates(1)
    limited = Caller("ann", limits=CallerLimits(max_images_per_run=3))
    run = await first.facade.create_run("", spec(manual={}), limited)
    async for event in second.facade.watch_run(run.name, limited):
        if event.HasField("image_ready"):
            break
    # Of the two sketches one is still to come.
    chosen = [Selection(image=f"{run.name}/images/generate-0", refine={"count": 2})]
    with pytest.raises(InvalidRequest, match="would have 4 pictures in all, and you may have 3") as raised:
        await second.facade.select_images("", run.name, chosen, limited)
    assert raised.value.field == "selections"
    chosen[0].refine.count = 1
    assert (await second.facade.select_images("", run.name, chosen, limited)).name == run.name
    stages.generators[0].gates[1].set()


async def test_a_finished_run_is_taken_further_by_the_other_gateway(gateways):
    first, second = gateways
    name = (await first.facade.create_run("", spec(**SKETCHES), ALL)).name
    before = await watch(first, name)
    chosen = [Selection(image=f"{name}/images/generate-0", upscale={})]
    await second.facade.select_images("", name, chosen, ALL)
    after = await watch(second, name, before[-1].sequence)
    assert finished(after).state == RunState.RUN_STATE_SUCCEEDED
    chosen[0].image = f"{name}/images/generate-1"
    await first.facade.select_images("", name, chosen, ALL)
    last = await watch(first, name, after[-1].sequence)
    assert [one.name.rpartition("/")[2] for one in ready(last)] == ["upscale-1"]


async def test_a_run_deleted_at_one_gateway_is_gone_at_the_other(gateways):
    first, second = gateways
    name = (await first.facade.create_run("", spec(**SKETCHES), ALL)).name
    await run_finished(first, name)
    await second.facade.delete_run(name, ALL)
    with pytest.raises(NotFound):
        await first.facade.get_run(name, ALL)


async def test_the_runs_of_a_gateway_that_dies_go_on_at_the_other(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(1)
    run = await first.facade.create_run("", spec(), ALL)
    before = []
    async for event in second.facade.watch_run(run.name, ALL):
        before.append(event)
        if event.HasField("image_ready"):
            break
    wake = await die(first)
    stages.generators[0].gates[1].set()
    after = await watch(second, run.name)
    wake()
    assert lasting(after)[: len(before)] == before
    assert finished(after).state == RunState.RUN_STATE_SUCCEEDED
    assert [event.sequence for event in await second.runs.journal.reader.read_log(run.name)] == list(
        range(1, after[-1].sequence + 1)
    )


async def test_a_gateway_that_wakes_up_writes_nothing_of_a_run_that_was_taken_over(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(0, 1)
    run = await first.facade.create_run("", spec(**SKETCHES), ALL)
    await stages.generators[0].begun[1].wait()
    wake = await die(first)
    asleep = first.runs.live(run.name).record
    # It goes on with its work, and does not know yet that somebody else does, too.
    asleep.warn("TEST", "nobody is to be told this")
    for index in (0, 1):
        stages.generators[0].gates[index].set()
    events = await watch(second, run.name)
    wake()
    await asleep.log.flushed()
    assert asleep.log.is_disowned
    assert lasting(await watch(first, run.name)) == lasting(events)
    assert "TEST" not in {event.warning.reason for event in events}


async def test_a_gateway_that_stops_hands_its_runs_over_at_once(stages, database, tmp_path):
    stages.generators[0].close_gates(0)
    async with gateway_over(stages, tmp_path, journal=database) as second:
        async with gateway_over(stages, tmp_path, journal=database) as first:
            run = await first.facade.create_run("", spec(**SKETCHES), ALL)
            await stages.generators[0].begun[0].wait()
        stages.generators[0].gates[0].set()
        assert (await run_finished(second, run.name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_run_lives_while_its_caller_is_at_the_other_gateway(stages, database, tmp_path):
    bounds = replace(BOUNDS, abandon_grace_s=0.1)
    stages.generators[0].close_gates(0)
    async with (
        gateway_over(stages, tmp_path, journal=database, bounds=bounds) as first,
        gateway_over(stages, tmp_path, journal=database, bounds=bounds) as second,
    ):
        run = await first.facade.create_run("", spec(**SKETCHES), ALL, detach=False)
        with second.facade.attach(run.name):
            await second.runs._leases.heartbeat_clients([run.name])
            with first.facade.attach(run.name):
                pass
            asked = asyncio.Event()
            has_clients = first.runs._leases.has_clients

            async def ask(name):
                answer = await has_clients(name)
                asked.set()
                return answer

            first.runs._leases.has_clients = ask
            await asked.wait()
            assert (await first.facade.get_run(run.name, ALL)).state == RunState.RUN_STATE_RUNNING
        await second.runs._leases.heartbeat_clients([])
        assert (await run_finished(first, run.name)).state == RunState.RUN_STATE_CANCELLED


async def test_a_gateway_that_stops_cancels_no_run_that_it_was_about_to_look_after(
    stages, database, server, tmp_path
):
    stages.generators[0].close_gates(0)
    async with gateway_over(stages, tmp_path, journal=database) as gateway:
        run = await gateway.facade.create_run("", spec(**SKETCHES), ALL, detach=False)
        await stages.generators[0].begun[0].wait()
        name = database.partition("@/")[2].partition("?")[0]
        async with locked_table(server, name, "attendances") as somebody_waits:
            # Nobody follows it: it asks whether somebody does elsewhere, and is stopped meanwhile.
            with gateway.facade.attach(run.name):
                pass
            await somebody_waits()
            stopping = await underway(gateway.runs.close(30))
        stages.generators[0].gates[0].set()
        stages.generators[0].gates[1].set()
        await stopping
        row = await gateway.runs.journal.reader.find_run(run.name)
    assert row.state == RunState.RUN_STATE_SUCCEEDED


async def test_callers_of_a_gateway_that_stops_have_time_to_come_back_to_the_other(gateways, stages):
    first, second = gateways
    stages.generators[0].close_gates(0)
    run = await first.facade.create_run("", spec(**SKETCHES), ALL, detach=False)
    await second.runs._leases.heartbeat_clients([run.name])
    await second.runs.close()
    assert await first.runs._leases.has_clients(run.name)


async def test_a_gateway_that_starts_takes_up_what_nobody_does(stages, database, tmp_path):
    stages.generators[0].close_gates(0)
    async with gateway_over(stages, tmp_path, journal=database) as gateway:
        run = await gateway.facade.create_run("", spec(), ALL)
        await stages.generators[0].begun[0].wait()
    stages.generators[0].gates[0].set()
    async with gateway_over(stages, tmp_path, journal=database) as gateway:
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_connections_to_the_database_that_break_are_made_again(gateways, stages, server, database):
    first, second = gateways
    stages.generators[0].close_gates(0)
    run = await first.facade.create_run("", spec(**SKETCHES), ALL)
    watcher = second.facade.watch_run(run.name, ALL)
    events = [await anext(watcher)]
    await stages.generators[0].begun[0].wait()
    name = database.partition("@/")[2].partition("?")[0]
    connection = await asyncpg.connect(host=server, user="postgres", database="postgres")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    await connection.close()
    stages.generators[0].gates[0].set()
    events += [event async for event in watcher]
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    assert lasting(events) == lasting(await watch(first, run.name))


async def test_pages_of_runs_are_those_of_both(gateways):
    names = [
        (await gateway.facade.create_run("", spec(**SKETCHES), ALL)).name
        for gateway in (*gateways, *gateways)
    ]
    page, token = await gateways[0].facade.list_runs(ALL, page_size=3)
    rest, _ = await gateways[1].facade.list_runs(ALL, page_size=3, page_token=token)
    assert [run.name for run in (*page, *rest)] == names[::-1]


async def test_a_waiting_run_is_moved_at_either_gateway_and_a_survivor_keeps_the_order(stages, gateways):
    first, second = gateways
    stages.generators[0].close_gates(0)
    names = [(await first.facade.create_run("", spec(**SKETCHES), ALL, in_turn=True)).name for _ in range(4)]
    _, a, b, c = names

    async def waiting(gateway):
        runs, _ = await gateway.facade.list_runs(ALL, states=[RunState.RUN_STATE_QUEUED])
        return [run.name for run in sorted(runs, key=lambda run: run.queue_order)]

    await second.facade.move_run(MoveRunRequest(name=c, before=a), ALL)
    assert await waiting(first) == await waiting(second) == [c, a, b]
    await die(first)
    await second.runs.recover_all()
    assert await waiting(second) == [c, a, b]
    stages.generators[0].gates[0].set()
    runs = [await run_finished(second, name) for name in names]
    assert [run.name for run in sorted(runs, key=lambda run: run.start_time.ToNanoseconds())] == [
        names[0],
        c,
        a,
        b,
    ]
