"""Workers: found, checked, chosen."""

import pytest
from grpc_health.v1 import health_pb2

from gateway.pool import Pool, Target, models_of, parse_target
from gateway.stages import GENERATE
from services.errors import NoWorker
from tests.gateway.runs_as_seen import collect, spec
from tests.gateway.scripted import ScriptedGenerator, ScriptedUpscaler, pipeline

# So long that no test sees a second round unless it asks for one.
NEVER_S = 3600.0


@pytest.fixture
async def worker():
    scripted = ScriptedGenerator()
    await scripted.start()
    yield scripted
    await scripted.kill()


@pytest.fixture
async def other():
    scripted = ScriptedGenerator(digest="d2")
    await scripted.start()
    yield scripted
    await scripted.kill()


def pool_of(*workers, **more):
    return Pool(GENERATE, [Target("127.0.0.1", one.port) for one in workers], check_every_s=NEVER_S, **more)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:50051", Target("127.0.0.1", 50051)),
        ("[::1]:50051", Target("::1", 50051)),
        ("dns:refiner:50052", Target("refiner", 50052, is_name=True)),
    ],
)
def test_a_target_is_an_address_or_a_name(text, target):
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "refiner", "refiner:", ":50051", "refiner:http", "refiner:0", "a:70000"]
)
def test_another_target_says_what_was_expected(text):
    with pytest.raises(ValueError, match="expected HOST:PORT or dns:NAME:PORT, got"):
        parse_target(text)


async def test_the_worker_with_the_fewest_images_is_chosen(worker, other):
    other.info.digest = worker.info.digest
    async with pool_of(worker, other) as pool:
        first = await pool.choose("d1")
        with pool.working(first):
            second = await pool.choose("d1")
            assert second is not first
            with pool.working(second), pool.working(second):
                assert await pool.choose("d1") is first


async def test_only_a_worker_with_the_run_s_model_is_chosen(worker, other):
    async with pool_of(worker, other) as pool:
        assert (await pool.choose("d2")).address == other.address
        with pytest.raises(NoWorker, match="no generator has the model that this run began with"):
            await pool.choose("d3")


async def test_a_worker_that_comes_up_is_found_when_it_is_needed(worker):
    await worker.kill()
    async with pool_of(worker) as pool:
        with pytest.raises(NoWorker, match="nobody answers there"):
            await pool.require()
        again = ScriptedGenerator()
        pool.targets = (Target("127.0.0.1", await _start(again)),)
        assert [one.address for one in await pool.require()] == [again.address]
        await again.kill()


async def _start(worker):
    await worker.start()
    return worker.port


async def test_a_distrusted_worker_is_trusted_again_once_it_answers(worker):
    async with pool_of(worker) as pool:
        found = await pool.choose("d1")
        pool.distrust(found, "its call broke off")
        assert pool.healthy == []
        assert await pool.choose("d1") is found


async def test_a_server_of_another_stage_is_no_worker():
    upscaler = ScriptedUpscaler()
    await upscaler.start()
    async with pool_of(upscaler) as pool:
        with pytest.raises(NoWorker, match="what answers there is no generator"):
            await pool.require()
    await upscaler.kill()


async def test_a_name_has_a_worker_at_each_of_its_addresses(worker):
    async def resolve(name, port):
        assert name == "generators"
        return ["127.0.0.1", "127.0.0.2"]

    target = Target("generators", worker.port, is_name=True)
    async with Pool(GENERATE, [target], check_every_s=NEVER_S, resolve=resolve) as pool:
        assert [one.address for one in await pool.require()] == [worker.address]
        assert set(pool._workers) == {worker.address, f"127.0.0.2:{worker.port}"}


async def test_a_name_is_resolved_again(worker):
    addresses = ["127.0.0.3"]

    async def resolve(name, port):
        return list(addresses)

    target = Target("generators", worker.port, is_name=True)
    async with Pool(GENERATE, [target], check_every_s=NEVER_S, resolve=resolve) as pool:
        with pytest.raises(NoWorker):
            await pool.require()
        addresses[:] = ["127.0.0.1"]
        assert [one.address for one in await pool.require()] == [worker.address]
        assert set(pool._workers) == {worker.address}


async def test_a_worker_whose_name_is_gone_finishes_its_work_first(worker):
    addresses = ["127.0.0.1"]

    async def resolve(name, port):
        return list(addresses)

    target = Target("generators", worker.port, is_name=True)
    async with Pool(GENERATE, [target], check_every_s=NEVER_S, resolve=resolve) as pool:
        found = await pool.choose("d1")
        with pool.working(found):
            addresses.clear()
            await pool.refresh()
            assert (pool.healthy, list(pool._workers.values())) == ([], [found])
        await pool.refresh()
        assert pool._workers == {}


async def test_a_name_server_that_fails_takes_no_worker_away(worker):
    answers = [["127.0.0.1"]]

    async def resolve(name, port):
        if not answers:
            raise OSError(-3, "Temporary failure in name resolution")
        return answers.pop()

    target = Target("generators", worker.port, is_name=True)
    async with Pool(GENERATE, [target], check_every_s=NEVER_S, resolve=resolve) as pool:
        await pool.require()
        await pool.refresh()
        assert [one.address for one in pool.healthy] == [worker.address]


async def test_a_name_that_does_not_resolve_is_told():
    async def resolve(name, port):
        raise OSError(-2, "Name or service not known")

    target = Target("generators", 50051, is_name=True)
    async with Pool(GENERATE, [target], check_every_s=NEVER_S, resolve=resolve) as pool:
        with pytest.raises(NoWorker, match=r"tried dns:generators:50051 \(the name does not resolve"):
            await pool.require()


async def test_a_worker_that_is_not_serving_yet_gets_no_work(worker):
    await worker.checks.set(GENERATE.service, health_pb2.HealthCheckResponse.NOT_SERVING)
    async with pool_of(worker) as pool:
        with pytest.raises(NoWorker, match="it is starting up or draining"):
            await pool.require()


async def test_a_name_is_resolved_by_the_system(worker):
    async with Pool(GENERATE, [parse_target(f"dns:localhost:{worker.port}")], check_every_s=NEVER_S) as pool:
        assert [one.address for one in await pool.require()] == [worker.address]


async def test_models_are_told_apart_by_their_digest(worker, other):
    async with pool_of(worker, other) as pool:
        models = models_of(await pool.require())
    assert {(model.digest, count) for model, count in models} == {("d1", 1), ("d2", 1)}


async def test_the_images_of_a_run_spread_over_the_workers():
    async with pipeline(generators=2) as gateway:
        for one in gateway.generators:
            one.close_gates(0, 1, 2, 3)
        events = []
        async for event in gateway.client.stream_run(spec(generate={"count": 4}, refine=None, upscale=None)):
            events.append(event)
            if sum(event.HasField("stage_started") for event in events) == 4:
                for one in gateway.generators:
                    for gate in one.gates.values():
                        gate.set()
        assert [len(one.requests) for one in gateway.generators] == [2, 2]


async def test_all_pictures_of_a_stage_are_made_with_one_model():
    async with pipeline(generators=2) as gateway:
        gateway.generators[1].info.digest = "d2"
        await gateway.notice()
        await collect(gateway, spec(generate={"count": 4}, refine=None, upscale=None))
        assert sorted(len(one.requests) for one in gateway.generators) == [0, 4]
