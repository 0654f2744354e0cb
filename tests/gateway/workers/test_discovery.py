"""Workers: found at addresses and names, and asked after their health."""

from grpc_health.v1 import health_pb2

from gateway.stages import GENERATE
from gateway.workers.discovery import Discovery
from gateway.workers.targets import Target, parse_target
from tests.gateway.fake_stage import ScriptedUpscaler, discovery_of


def named(port, resolve):
    """The workers at each address of a name."""
    return Discovery(
        GENERATE, [Target("generators", port, is_name=True)], check_every_s=3600.0, resolve=resolve
    )


def resolving(hosts):
    """To whatever the list holds by then."""

    async def resolve(name, port):
        return list(hosts)

    return resolve


def addresses(workers):
    return sorted(worker.address for worker in workers)


async def test_a_worker_that_comes_up_is_found_when_it_is_needed(worker, other):
    await worker.kill()
    async with discovery_of(worker) as discovery:
        await discovery.refresh()
        assert "nobody answers there" in discovery.why_none()
        discovery.targets = (Target("127.0.0.1", other.port),)
        await discovery.refresh_until(lambda: discovery.healthy)
        assert addresses(discovery.healthy) == [other.address]


async def test_a_list_of_workers_may_change(worker, other):
    listed = [Target("127.0.0.1", worker.port)]

    async def more():
        return listed

    async with discovery_of(more_targets=more) as discovery:
        await discovery.refresh()
        assert addresses(discovery.healthy) == [worker.address]
        listed[:] = [Target("127.0.0.1", other.port)]
        await discovery.refresh()
        assert addresses(discovery.healthy) == [other.address]


async def test_a_server_of_another_stage_is_no_worker():
    upscaler = ScriptedUpscaler()
    await upscaler.start()
    async with discovery_of(upscaler) as discovery:
        await discovery.refresh()
        assert discovery.healthy == []
        assert "what answers there is no generator" in discovery.why_none()
    await upscaler.kill()


async def test_a_worker_that_is_not_serving_yet_gets_no_work(worker):
    await worker.checks.set(GENERATE.service, health_pb2.HealthCheckResponse.NOT_SERVING)
    async with discovery_of(worker) as discovery:
        await discovery.refresh()
        assert discovery.healthy == []
        assert "it is starting up or draining" in discovery.why_none()


async def test_those_who_wait_learn_that_a_worker_can_be_given_work(worker):
    async with discovery_of(worker) as discovery:
        healthy = []
        discovery.on_change = lambda: healthy.append(len(discovery.healthy))
        await discovery.refresh()
        assert healthy[-1] == 1


async def test_a_name_has_a_worker_at_each_of_its_addresses(worker):
    async def resolve(name, port):
        assert name == "generators"
        return ["127.0.0.1", "127.0.0.2"]

    async with named(worker.port, resolve) as discovery:
        await discovery.refresh()
        assert addresses(discovery.healthy) == [worker.address]
        assert addresses(discovery.workers) == [worker.address, f"127.0.0.2:{worker.port}"]


async def test_a_name_is_resolved_again(worker):
    hosts = ["127.0.0.3"]

    async with named(worker.port, resolving(hosts)) as discovery:
        await discovery.refresh()
        assert discovery.healthy == []
        hosts[:] = ["127.0.0.1"]
        await discovery.refresh()
        assert addresses(discovery.workers) == addresses(discovery.healthy) == [worker.address]


async def test_a_worker_whose_name_is_gone_finishes_its_work_first(worker):
    hosts = ["127.0.0.1"]

    async with named(worker.port, resolving(hosts)) as discovery:
        await discovery.refresh()
        [found] = discovery.healthy
        found.outstanding = 1
        hosts.clear()
        await discovery.refresh()
        assert (discovery.healthy, discovery.workers) == ([], [found])
        found.outstanding = 0
        await discovery.refresh()
        assert discovery.workers == []


async def test_a_name_server_that_fails_takes_no_worker_away(worker):
    answers = [["127.0.0.1"]]

    async def resolve(name, port):
        if not answers:
            raise OSError(-3, "Temporary failure in name resolution")
        return answers.pop()

    async with named(worker.port, resolve) as discovery:
        await discovery.refresh()
        await discovery.refresh()
        assert addresses(discovery.healthy) == [worker.address]


async def test_a_name_that_does_not_resolve_is_reported():
    async def resolve(name, port):
        raise OSError(-2, "Name or service not known")

    async with named(50051, resolve) as discovery:
        await discovery.refresh()
        assert "tried dns:generators:50051 (the name does not resolve" in discovery.why_none()


async def test_a_name_is_resolved_by_the_system(worker):
    target = parse_target(f"dns:localhost:{worker.port}")
    async with Discovery(GENERATE, [target], check_every_s=3600.0) as discovery:
        await discovery.refresh()
        assert addresses(discovery.healthy) == [worker.address]
