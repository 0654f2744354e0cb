"""The client while its gateway, a real process, is killed and started again."""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.gateway.fake_stage import scripted_stages
from tests.gateway.run_fixtures import spec
from tests.triptych.cli.command_line import ROOT, environment
from triptych._reconnect import Backoff
from triptych.client import Client

# Starting a gateway takes longer than these tests: they share one, and its event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

SKETCHES = {"refine": None, "upscale": None}
QUICK = Backoff(first_s=0.01, longest_s=0.1, connect_within_s=60)


class GatewayProcess:
    """`triptych serve gateway` over scripted stages; every start has the same port, journal and pictures."""

    def __init__(self, stages, folder: Path) -> None:
        self.stages = stages
        self.folder = folder
        self.address = ""
        self._port = "0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        workers = {
            "generator": self.stages.generators,
            "refiner": self.stages.refiners,
            "upscaler": self.stages.upscalers,
        }
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "triptych", "serve", "gateway", "--exit-with-parent"),
            *("--port", self._port, "--log-level", "error"),
            *("--journal", str(self.folder / "journal.db"), "--store", str(self.folder / "pictures")),
            *(f"--{name}={worker.address}" for name, each in workers.items() for worker in each),
            cwd=ROOT,
            env=environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.address = json.loads(await self._process.stdout.readline())["address"]
        self._port = self.address.rpartition(":")[2]

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    async with AsyncExitStack() as stack:
        running = GatewayProcess(await stack.enter_async_context(scripted_stages()), folder)
        await running.start()
        stack.push_async_callback(running.kill)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway):
    async with Client(gateway.address, backoff=QUICK) as calls:
        yield calls


async def test_a_run_that_is_followed_goes_on_when_its_gateway_is_killed(gateway, client):
    generator, events = gateway.stages.generators[0], []
    generator.close_gates(1)
    run = client.run(spec(**SKETCHES))
    async for event in run:
        events.append(event)
        if event.HasField("image_ready") and len(run.result.pictures) == 1:
            await gateway.kill()
            generator.gates[1].set()
            await gateway.start()
    assert run.result.state == "succeeded"
    reported = [event.image_ready.image.index for event in events if event.HasField("image_ready")]
    assert reported == [0, 1]
    replayed = [event async for event in client.watch(run.result.name)]
    lasting = [event for event in events if not event.HasField("preview")]
    assert lasting == [event for event in replayed if not event.HasField("preview")]


async def test_a_run_waits_for_a_gateway_that_is_about_to_come(gateway, client):
    await gateway.kill()
    run = asyncio.create_task(client.run(spec(**SKETCHES)).gather())
    await gateway.start()
    assert (await run).state == "succeeded"


async def test_the_same_request_id_is_the_same_run_after_a_restart(gateway, client):
    asked = spec(**SKETCHES)
    asked.prompt = "once only"
    first = await client.run(asked, request_id="once")
    await gateway.kill()
    await gateway.start()
    assert await client.run(asked, request_id="once") == first
    assert [run.spec.prompt async for run in client.list_runs()].count("once only") == 1


async def test_a_choice_goes_on_after_a_restart(gateway, client):
    first = await client.run(spec(upscale=None))
    await gateway.kill()
    selected = asyncio.create_task(client.select(first.variations, upscale=True).gather())
    await gateway.start()
    assert len((await selected).upscaled) == 2
