"""SIGTERM in every state: gateway, stages and `triptych up` end within their grace and two seconds, whatever hangs."""

import asyncio
import base64
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moto.server import ThreadedMotoServer

from tests.faults.processes import ROOT, WORKERS, Process, free_port, gateway_command, stage_command
from tests.faults.run_observer import Caller, Watcher, open_channel, spec
from tests.faults.stage_process import NUM_STEPS
from tests.gateway.postgresql import new_database, postgresql_server
from tests.relay import relay
from triptych.cli.processes import GRACE_S as UP_GRACE_S
from triptych.v1.generator_pb2 import GenerateRequest
from triptych.v1.generator_pb2_grpc import GeneratorServiceStub
from triptych.v1.pipeline_pb2 import CreateRunRequest, WatchRunRequest

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

GRACE_S = 1.0
MORE_S = 2.0


class Scene:
    """What a case prepares: options and variables of the process, and what ends with the case."""

    def __init__(self, folder: Path, workers: dict[str, Process], stack: AsyncExitStack) -> None:
        self.folder = folder
        self.workers = workers
        self.stack = stack
        self.journal = str(folder / "journal.db")
        self.store = str(folder / "pictures")
        self.options: list[str] = []
        self.variables: dict[str, str] = {}
        # Before it is started, and between its start and SIGTERM.
        self.prepare: Callable[[], Awaitable[None]] = _nothing
        self.begin: Callable[..., Awaitable[None]] = _nothing
        self.is_serving = True
        self.is_connected = asyncio.Event()

    async def silent_server(self) -> str:
        """The address of a server that takes connections and sends nothing."""

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.is_connected.set()
            with suppress(ConnectionError):
                while await reader.read(65_536):
                    pass
            writer.close()

        server = await asyncio.start_server(hold, "127.0.0.1", 0)
        self.stack.callback(server.close)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def hold_workers(self, step: int = 3) -> None:
        for worker in self.workers.values():
            worker.forget_holding()
            await worker.order(hold_at=step)

    async def start_run(self, gateway: Process) -> str:
        """A detached run whose picture a worker holds."""
        await self.hold_workers()
        caller = await self.stack.enter_async_context(Caller(gateway.address))
        await caller.sees_workers(1)
        name = await caller.create(spec(images=1))
        await self.workers["generator"].heard("holding")
        return name


async def _nothing(*_: Process) -> None: ...


def idle(scene: Scene) -> None:
    """Nobody wants anything."""


def a_run_whose_worker_holds(scene: Scene) -> None:
    async def begin(gateway: Process) -> None:
        await scene.start_run(gateway)

    scene.begin = begin


def a_run_whose_worker_is_frozen(scene: Scene) -> None:
    async def begin(gateway: Process) -> None:
        await scene.start_run(gateway)
        for worker in scene.workers.values():
            worker.send(signal.SIGSTOP)
            scene.stack.callback(worker.send, signal.SIGCONT)

    scene.begin = begin


def open_event_streams(scene: Scene) -> None:
    scene.options += ["--http-port", "0"]

    async def begin(gateway: Process) -> None:
        name = await scene.start_run(gateway)
        channel = await scene.stack.enter_async_context(open_channel(gateway.address))
        for _ in range(20):
            call = channel.unary_stream("/triptych.v1.PipelineService/WatchRun")(
                WatchRunRequest(name=name).SerializeToString()
            )
            await call.read()
            reader = await connect(scene, gateway, f"GET /{name}/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readline()

    scene.begin = begin


def uploads_under_way(scene: Scene) -> None:
    scene.options += ["--http-port", "0"]

    async def begin(gateway: Process) -> None:
        head = "POST /runs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{"
        for _ in range(4):
            await connect(scene, gateway, head)
        channel = await scene.stack.enter_async_context(open_channel(gateway.address))
        for method in ("CreateRun", "StreamRun", "ListRuns"):
            call = channel.stream_stream(f"/triptych.v1.PipelineService/{method}")()
            scene.stack.callback(call.cancel)
            # The call is there; its request never comes.
            with suppress(TimeoutError):
                await asyncio.wait_for(call.initial_metadata(), 0.5)

    scene.begin = begin


def connections_that_say_nothing(scene: Scene) -> None:
    scene.options += ["--http-port", "0"]

    async def begin(gateway: Process) -> None:
        for begun in ("", "GET /runs HTTP/1.1\r\nhost: localhost\r\n", "\x16\x03\x01\x02"):
            await connect(scene, gateway, begun)
            await connect(scene, gateway, begun, over="address")

    scene.begin = begin


def a_store_that_does_not_answer(scene: Scene) -> None:
    """At the start already: what asks for its bucket hears nothing."""

    async def prepare() -> None:
        scene.variables |= {
            "AWS_ENDPOINT_URL": f"http://{await scene.silent_server()}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
        }

    scene.store = "s3://bucket/pictures"
    scene.is_serving = False
    scene.prepare = prepare


def a_bucket_that_falls_silent(scene: Scene) -> None:
    """While a picture is stored there."""

    async def prepare() -> None:
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        scene.stack.callback(server.stop)
        host, port = server.get_host_and_port()
        between = await scene.stack.enter_async_context(relay(f"{host}:{port}"))
        scene.variables |= {
            "AWS_ENDPOINT_URL": f"http://{between.address}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
        }
        request = Request(f"http://{between.address}/bucket", method="PUT")
        await asyncio.to_thread(urlopen, request)
        scene.store = "s3://bucket/pictures"

        async def begin(gateway: Process) -> None:
            name = await scene.start_run(gateway)
            between.swallow()
            for worker in scene.workers.values():
                await worker.order(hold_at=0, go=True)
            watcher = Watcher(gateway.address, name)
            scene.stack.push_async_callback(watcher.close)
            await watcher.sees(lambda event: event.progress.step == NUM_STEPS - 1)
            # The last step has no event but the stored picture.
            await asyncio.sleep(0.5)

        scene.begin = begin

    scene.prepare = prepare


def a_journal_that_another_program_locks(scene: Scene) -> None:
    async def begin(gateway: Process) -> None:
        await scene.start_run(gateway)
        script = (
            "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); "
            "print('held', flush=True); time.sleep(600)"
        )
        holder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, scene.journal), stdout=asyncio.subprocess.PIPE
        )
        scene.stack.callback(holder.kill)
        assert holder.stdout is not None
        await holder.stdout.readline()

    scene.begin = begin


def a_database_that_is_silent_at_the_start(scene: Scene) -> None:
    async def prepare() -> None:
        scene.journal = f"postgresql://user:secret@{await scene.silent_server()}/runs"

    scene.is_serving = False
    scene.prepare = prepare


def a_database_that_is_frozen(scene: Scene) -> None:
    _with_database(scene, signal.SIGSTOP)


def a_database_that_is_gone(scene: Scene) -> None:
    _with_database(scene, signal.SIGKILL)


def _with_database(scene: Scene, number: signal.Signals) -> None:
    async def prepare() -> None:
        folder = scene.stack.enter_context(postgresql_server())
        scene.journal = await new_database(folder)
        server = psutil.Process(first_number(Path(folder, "data/postmaster.pid")))

        async def begin(gateway: Process) -> None:
            await scene.start_run(gateway)
            processes = [server, *server.children(recursive=True)]
            for one in processes:
                one.send_signal(number)
                if number == signal.SIGSTOP:
                    scene.stack.callback(one.send_signal, signal.SIGCONT)

        scene.begin = begin

    scene.prepare = prepare


def a_webhook_that_hangs(scene: Scene) -> None:
    async def prepare() -> None:
        url = f"http://{await scene.silent_server()}/done"
        secrets = scene.folder / "secrets"
        secrets.write_text(f"whsec_{base64.b64encode(os.urandom(32)).decode()}\n")
        secrets.chmod(0o600)
        allowed = ["--webhook-allow", url, "--webhook-allow-private", "--webhook-secret-file", str(secrets)]
        scene.options += allowed

        async def begin(gateway: Process) -> None:
            caller = await scene.stack.enter_async_context(Caller(gateway.address))
            await caller.sees_workers(1)
            await caller.stub.CreateRun(CreateRunRequest(spec=spec(images=1), webhook_url=url))
            await scene.is_connected.wait()

        scene.begin = begin

    scene.prepare = prepare


def a_collector_of_traces_that_hangs(scene: Scene) -> None:
    async def prepare() -> None:
        scene.variables |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{await scene.silent_server()}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }

        async def begin(gateway: Process) -> None:
            await scene.start_run(gateway)

        scene.begin = begin

    scene.prepare = prepare


async def connect(scene: Scene, gateway: Process, text: str, *, over: str = "http") -> asyncio.StreamReader:
    host, _, port = (await gateway.heard(over))[over].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    scene.stack.callback(writer.close)
    writer.write(text.encode("latin-1"))
    await writer.drain()
    return reader


GATEWAY_STATES = [
    idle,
    a_run_whose_worker_holds,
    a_run_whose_worker_is_frozen,
    open_event_streams,
    uploads_under_way,
    connections_that_say_nothing,
    a_store_that_does_not_answer,
    a_bucket_that_falls_silent,
    a_journal_that_another_program_locks,
    a_database_that_is_silent_at_the_start,
    a_database_that_is_frozen,
    a_database_that_is_gone,
    a_webhook_that_hangs,
    a_collector_of_traces_that_hangs,
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers(tmp_path_factory):
    """One of each stage, for all gateways."""
    folder = tmp_path_factory.mktemp("workers")
    async with AsyncExitStack() as stack:
        made = {}
        for stage in WORKERS:
            made[stage] = Process(stage, stage_command(stage, port=free_port()), log=folder / f"{stage}.log")
            stack.push_async_callback(made[stage].close)
        await asyncio.gather(*(worker.start() for worker in made.values()))
        yield made


async def seconds_to_end(process: Process) -> float:
    began = time.monotonic()
    process.send(signal.SIGTERM)
    await process.ended()
    return time.monotonic() - began


@pytest.mark.parametrize("state", GATEWAY_STATES, ids=lambda state: state.__name__)
async def test_a_gateway_ends_in_time(tmp_path, workers, row, state):
    async with AsyncExitStack() as stack:
        scene = Scene(tmp_path, workers, stack)
        state(scene)
        await scene.prepare()
        addresses = {stage: [worker.address] for stage, worker in workers.items()}
        command = gateway_command(
            addresses,
            journal=scene.journal,
            store=scene.store,
            port=0,
            options=[*scene.options, "--grace", str(GRACE_S)],
        )
        gateway = Process("gateway", command, variables=scene.variables, log=tmp_path / "gateway.log")
        stack.push_async_callback(gateway.close)
        await gateway.start(until_serving=scene.is_serving)
        if not scene.is_serving:
            await listens_to_signals(gateway)
        await scene.begin(gateway)
        took_s = await seconds_to_end(gateway)
    for worker in workers.values():
        await worker.order(hold_at=0, go=True)
    row(f"ended after {took_s:.2f} s with a grace of {GRACE_S:g} s")
    assert took_s < GRACE_S + MORE_S
    assert "Traceback" not in gateway.log.read_text()


async def listens_to_signals(process: Process) -> None:
    """Waits until SIGTERM is the process's own matter, and what it then waits for has begun."""
    async with asyncio.timeout(120):
        while not catches_sigterm(process):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)


def catches_sigterm(process: Process) -> bool:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def first_number(path: Path) -> int:
    return int(path.read_text().split()[0])


async def test_a_gateway_that_is_stopped_uses_no_second_grace(tmp_path, workers, row):
    """A run takes all of it; the uploads that are still there have had it, too."""
    async with AsyncExitStack() as stack:
        scene = Scene(tmp_path, workers, stack)
        uploads_under_way(scene)
        addresses = {stage: [worker.address] for stage, worker in workers.items()}
        options = [*scene.options, "--grace", "3"]
        command = gateway_command(
            addresses, journal=scene.journal, store=scene.store, port=0, options=options
        )
        gateway = Process("gateway", command, log=tmp_path / "gateway.log")
        stack.push_async_callback(gateway.close)
        await gateway.start()
        await scene.start_run(gateway)
        await scene.begin(gateway)
        took_s = await seconds_to_end(gateway)
    await asyncio.gather(*(worker.order(hold_at=0, go=True) for worker in workers.values()))
    row(f"ended after {took_s:.2f} s with a grace of 3 s")
    assert took_s < 3 + MORE_S
    assert "does not end" not in gateway.log.read_text()


async def hold_a_step(stage: Process, stack: AsyncExitStack) -> None:
    """Its device thread hangs, as in a driver."""
    await stage.order(hold_at=1)
    await generate(stage, stack)
    await stage.heard("holding")


async def leave_requests_open(stage: Process, stack: AsyncExitStack) -> None:
    channel = await stack.enter_async_context(open_channel(stage.address))
    for method in ("Generate", "GetModel"):
        call = channel.stream_stream(f"/triptych.v1.GeneratorService/{method}")()
        stack.callback(call.cancel)
        with suppress(TimeoutError):
            await asyncio.wait_for(call.initial_metadata(), 0.5)


async def watch_health(stage: Process, stack: AsyncExitStack) -> None:
    channel = await stack.enter_async_context(open_channel(stage.address))
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()


async def read_nothing(stage: Process, stack: AsyncExitStack) -> None:
    for _ in range(8):
        await generate(stage, stack, num_images=32)


async def generate(stage: Process, stack: AsyncExitStack, num_images: int = 1) -> None:
    channel = await stack.enter_async_context(open_channel(stage.address))
    request = GenerateRequest(prompt="x")
    for index in range(num_images):
        request.images.add(index=index, seed=index)
    call = GeneratorServiceStub(channel).Generate(request)
    stack.callback(call.cancel)
    await call.read()


async def stay_idle(stage: Process, stack: AsyncExitStack) -> None: ...


@pytest.mark.parametrize(
    "state",
    [stay_idle, hold_a_step, leave_requests_open, watch_health, read_nothing],
    ids=lambda state: state.__name__,
)
async def test_a_stage_ends_in_time(tmp_path, row, state):
    command = stage_command("generator", port=0, grace=GRACE_S, step_s=0.5)
    async with AsyncExitStack() as stack:
        stage = Process("generator", command, log=tmp_path / "stage.log")
        stack.push_async_callback(stage.close)
        await stage.start()
        await state(stage, stack)
        took_s = await seconds_to_end(stage)
    row(f"ended after {took_s:.2f} s with a grace of {GRACE_S:g} s")
    assert took_s < GRACE_S + MORE_S
    assert "Traceback" not in stage.log.read_text()


@pytest.mark.parametrize("frozen", ["", "gateway"])
async def test_triptych_up_ends_in_time(tmp_path, row, frozen):
    """Also when one of its services takes no signal."""
    command = [sys.executable, "-m", "triptych", "up", "--port", "0", "--http-port", "0"]
    command += ["--journal", str(tmp_path / "journal.db"), "--store", str(tmp_path / "pictures")]
    up = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert up.stdout is not None
    try:
        while b"In another terminal" not in await up.stdout.readline():
            assert up.returncode is None
        children = psutil.Process(up.pid).children()
        for child in children:
            if frozen and frozen in child.cmdline():
                child.suspend()
        began = time.monotonic()
        up.send_signal(signal.SIGTERM)
        await up.wait()
        took_s = time.monotonic() - began
    finally:
        with suppress(ProcessLookupError):
            up.kill()
    row(f"ended after {took_s:.2f} s with a grace of {UP_GRACE_S:g} s")
    assert took_s < UP_GRACE_S + MORE_S
    assert not any(child.is_running() for child in children)
