"""The client against a real gateway over scripted stages, through a network that breaks."""

import asyncio
import hashlib
import shutil
from contextlib import aclosing, asynccontextmanager

import pytest

from gateway.runs.manager import RunLimits
from tests.gateway.fake_stage import gateway_over, pipeline, png, scripted_stages
from tests.gateway.run_fixtures import lasting, spec
from tests.relay import relay
from triptych._reconnect import Backoff
from triptych.client import Client, DeadlineExceeded, ImageLost, NotFound, RunFailed, Unreachable
from triptych.v1.pipeline_pb2 import RunState

QUICK = Backoff(first_s=0.001, longest_s=0.01, give_up_after_s=30)
SKETCHES = {"refine": None, "upscale": None}


@pytest.fixture
async def gateway():
    # A caller who is cut off has time to come back.
    async with pipeline(bounds=RunLimits(abandon_grace_s=30)) as running:
        yield running


@asynccontextmanager
async def poor_network(gateway, *, seed: int, **more):
    """A client, and the relay that stands between it and the gateway."""
    async with (
        relay(gateway.address, seed=seed, **more) as between,
        Client(between.address, backoff=QUICK) as client,
    ):
        yield client, between


@pytest.mark.parametrize(("seed", "num_images", "num_cuts"), [(0, 8, 4), (1, 8, 4), (2, 64, 50)])
async def test_over_a_network_that_breaks_every_event_comes_once(gateway, seed, num_images, num_cuts):
    gateway.generator.picture_bytes = 20_000
    # Some connections last for a picture or two, others break within one.
    bounds = {"num_cuts": num_cuts, "most_bytes": 40_000}
    async with poor_network(gateway, seed=seed, **bounds) as (client, between):
        events = [event async for event in client.run(spec(generate={"count": num_images}))]
    assert between.num_cuts == num_cuts
    assert events[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    replayed = [event async for event in gateway.client.watch_run(events[0].state.run)]
    assert lasting(events) == lasting(replayed)
    assert [event.sequence for event in lasting(events)] == sorted(
        {event.sequence for event in lasting(events)}
    )


async def test_a_broken_stream_makes_no_second_run(gateway):
    gateway.generator.picture_bytes = 20_000
    async with poor_network(gateway, seed=5, num_cuts=3) as (client, between):
        result = await client.run(spec(generate={"count": 4}))
    assert (between.num_cuts, result.state) == (3, "succeeded")
    assert sorted(request.images[0].index for request in gateway.generator.requests) == [0, 1, 2, 3]


async def test_awaiting_a_run_gives_its_pictures(gateway):
    gateway.refiner.scores = {101: 0.75}
    result = await gateway.client.run(spec())
    assert (result.state, result.prompt, result.seed) == ("succeeded", "a red house", 100)
    assert [(each.stage, each.index) for each in result.pictures] == [
        ("generate", 0),
        ("generate", 1),
        ("refine", 0),
        ("refine", 1),
        ("upscale", 0),
    ]
    chosen = result["generate-1"]
    assert (chosen.seed, chosen.clip_score, chosen.is_chosen) == (101, 0.75, True)
    assert chosen.data == png(101)
    assert chosen.sha256 == hashlib.sha256(chosen.data).hexdigest()
    assert {each.parent for each in result.variations} == {chosen.name}


async def test_a_prompt_alone_is_enough(gateway):
    result = await gateway.client.run("a red house")
    assert (len(result.sketches), len(result.variations), len(result.upscaled)) == (8, 8, 1)


async def test_a_large_picture_is_downloaded_in_pieces_over_a_network_that_breaks(gateway):
    gateway.generator.picture_bytes = 5 * 2**20
    asked = spec(generate={"count": 1}, **SKETCHES)
    async with poor_network(gateway, seed=1, num_cuts=5, most_bytes=3 * 2**20) as (client, between):
        (picture,) = (await client.run(asked)).pictures
    assert between.num_cuts == 5
    assert picture.data == png(100) + bytes(5 * 2**20)


async def test_leaving_a_run_cancels_it_and_leaving_a_detached_one_does_not(gateway):
    gateway.generator.close_gates(0, 1)
    names = []
    for detach in (False, True):
        async with gateway.client.run(spec(**SKETCHES), detach=detach) as run, aclosing(aiter(run)) as events:
            names.append((await anext(events)).state.run)
    left = await gateway.client.get_run(names[0])
    assert left.state == RunState.RUN_STATE_CANCELLED
    gateway.generator.gates[0].set()
    gateway.generator.gates[1].set()
    assert (await gateway.client.watch(names[1])).state == "succeeded"


async def test_closing_the_client_leaves_its_runs(gateway):
    gateway.generator.close_gates(0, 1)
    client = Client(gateway.address)
    events = aiter(client.run(spec(**SKETCHES)))
    name = (await anext(events)).state.run
    await client.close()
    assert (await gateway.client.get_run(name)).state == RunState.RUN_STATE_CANCELLED


async def test_cancelling_the_task_that_follows_a_run_cancels_the_run(gateway):
    gateway.generator.close_gates(0, 1)
    run, begun = gateway.client.run(spec(**SKETCHES)), asyncio.Event()

    async def follow():
        async for _ in run:
            begun.set()

    task = asyncio.create_task(follow())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await gateway.client.get_run(run.result.name)).state == RunState.RUN_STATE_CANCELLED


async def test_a_failed_run_raises_after_its_last_event_and_keeps_what_it_made(gateway):
    gateway.generator.errors = {0: RuntimeError("broken"), 1: RuntimeError("broken")}
    run = gateway.client.run(spec(**SKETCHES))
    with pytest.raises(RunFailed):
        await run
    assert (run.result.state, run.result.pictures) == ("failed", [])
    assert run.result.error is not None


async def test_a_run_that_takes_longer_than_it_may_is_given_up(gateway):
    gateway.generator.close_gates(0)
    with pytest.raises(DeadlineExceeded):
        await gateway.client.run(spec(**SKETCHES), timeout_s=0.2)


async def test_the_same_request_id_joins_the_same_run(gateway):
    first = await gateway.client.run(spec(**SKETCHES), request_id="once")
    again = await gateway.client.run(spec(**SKETCHES), request_id="once")
    assert again == first


async def test_a_run_that_others_follow_is_theirs_when_one_leaves(gateway):
    gateway.generator.close_gates(0)
    async with gateway.client.run(spec(**SKETCHES), request_id="shared") as first:
        await anext(aiter(first))
        second = aiter(gateway.client.run(spec(**SKETCHES), request_id="shared"))
        await anext(second)
    gateway.generator.gates[0].set()
    *_, last = [event async for event in second]
    assert last.finished.state == RunState.RUN_STATE_SUCCEEDED


async def test_a_run_is_followed_once(gateway):
    run = gateway.client.run(spec(**SKETCHES))
    await run
    with pytest.raises(RuntimeError, match="followed already"):
        await run


async def test_a_watched_run_can_be_awaited_from_any_event_on(gateway):
    first = await gateway.client.run(spec())
    assert await gateway.client.watch(first.name) == first
    rest = await gateway.client.watch(first.name, after_sequence=first.last_sequence - 1)
    assert (rest.name, rest.prompt, rest.seed) == (first.name, first.prompt, first.seed)
    assert (rest.state, rest.pictures) == ("succeeded", [])


async def test_a_picture_whose_file_is_gone_is_reported_without_it(tmp_path):
    async with scripted_stages() as stages:
        async with gateway_over(stages, tmp_path) as gateway:
            made = await gateway.client.run(spec(**SKETCHES))
        shutil.rmtree(tmp_path / "pictures")
        async with gateway_over(stages, tmp_path) as gateway:
            with pytest.raises(ImageLost):
                await gateway.client.download_image(made.pictures[0].name)
            watched = await gateway.client.watch(made.name)
    assert [each.sha256 for each in watched.pictures] == [each.sha256 for each in made.pictures]
    assert {each.data for each in watched.pictures} == {b""}
    assert watched.contact_sheet().startswith(b"\x89PNG")


async def test_a_run_that_is_not_there_is_not_waited_for(gateway):
    with pytest.raises(NotFound):
        await gateway.client.watch("runs/none")


async def test_only_a_gateway_that_never_answered_is_a_first_contact(gateway, unused_tcp_port):
    with pytest.raises(NotFound) as refused:
        await gateway.client.watch("runs/none")
    assert not refused.value.is_first_contact
    async with Client(f"127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(Unreachable) as missing:
            await client.list_models()
    assert missing.value.is_first_contact


async def test_a_gateway_that_stays_away_is_given_up():
    async with Client("127.0.0.1:1", backoff=Backoff(first_s=0.01, give_up_after_s=0.05)) as client:
        with pytest.raises(Unreachable, match=r"no gateway answers at 127\.0\.0\.1:1"):
            await client.run("a red house")
