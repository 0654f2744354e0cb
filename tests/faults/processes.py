"""The gateway and its workers as real processes, that tests stop, kill and start again by real signals."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.faults.network import Namespace

ROOT = Path(__file__).parents[2]
# Models are loaded and compiled meanwhile, on machines that do other things, too.
PATIENCE_S = 240.0

WORKERS = ("generator", "refiner", "upscaler")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Process:
    """One that prints in lines of JSON what it does, the first being where it listens; it can be started again there."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        prefix: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        log: Path,
    ) -> None:
        self.name = name
        self.address = ""
        self.command = list(command)
        self.prefix = list(prefix)
        self.variables = dict(variables or {})
        self.log = log
        self.said: list[dict] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._spoke = asyncio.Condition()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of the process itself, also where another one looks over its shoulder."""
        assert self._process is not None
        if not self.prefix or self.prefix[0] != "strace":
            return self._process.pid
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    async def start(self, *, until_serving: bool = True) -> None:
        self.said.clear()
        variables = {key: value for key, value in os.environ.items() if not key.startswith("TRIPTYCH_")}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.prefix,
                *self.command,
                cwd=ROOT,
                env=variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | self.variables,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._reading = asyncio.create_task(self._read())
        if until_serving:
            self.address = (await self.heard("address"))["address"]

    async def heard(self, key: str, matches: Callable[[dict], bool] = lambda _: True) -> dict:
        """The first line with this key that the process prints, or has printed, since it was started."""

        def found() -> dict | None:
            return next((line for line in self.said if key in line and matches(line)), None)

        try:
            async with asyncio.timeout(PATIENCE_S), self._spoke:
                await self._spoke.wait_for(lambda: found() or not self.is_alive)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not say {key!r} within {PATIENCE_S:g} s") from None
        line = found()
        assert line is not None, f"{self.name} ended before it said {key!r}: {self.log.read_text()[-2000:]}"
        return line

    async def order(self, **order) -> None:
        """Orders a stage, and returns when it has the order."""
        assert self._process is not None
        assert self._process.stdin is not None
        self.said = [line for line in self.said if line.get("ordered") != order]
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        await self.heard("ordered", lambda line: line["ordered"] == order)

    def forget_holding(self) -> None:
        self.said = [line for line in self.said if "holding" not in line and "spoilt" not in line]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and returns when it is gone."""
        if self.is_alive:
            self.send(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        assert self._reading is not None
        async with asyncio.timeout(PATIENCE_S):
            code = await self._process.wait()
            await self._reading
        return code

    async def close(self) -> None:
        if self._process is not None:
            await self.kill()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._spoke:
                self.said.append(json.loads(line))
                self._spoke.notify_all()
        await self._process.wait()
        async with self._spoke:
            self._spoke.notify_all()


class Cluster:
    """A gateway that keeps its runs in a folder, and some workers of each stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: dict[str, list[Process]] = {}
        # Where the gateway finds them, which may be at something in between.
        self.known_addresses: set[str] = set()
        self.gateway: Process

    @property
    def address(self) -> str:
        return self.gateway.address

    def all_workers(self) -> list[Process]:
        return [worker for workers in self.workers.values() for worker in workers]

    async def mend(self) -> None:
        """Starts again whatever a test has killed."""
        for process in (*self.all_workers(), self.gateway):
            if process.is_alive:
                process.send(signal.SIGCONT)
            else:
                await process.start()
        for worker in self.all_workers():
            await worker.order(go=True)

    def worker_at(self, address: str) -> Process:
        return next(worker for worker in self.all_workers() if worker.address == address)


def stage_command(stage: str, *, port: int, host: str = "127.0.0.1", **options: object) -> list[str]:
    more = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [
        sys.executable,
        "-m",
        "tests.faults.stage_process",
        stage,
        "--host",
        host,
        "--port",
        str(port),
        *more,
    ]


def gateway_command(
    addresses: dict[str, list[str]], *, journal: str, store: str, port: int, options: Sequence[str] = ()
) -> list[str]:
    targets = [part for stage, found in addresses.items() for one in found for part in (f"--{stage}", one)]
    places = ["--journal", journal, "--store", store]
    serve = [sys.executable, "-m", "triptych", "serve", "gateway", "--port", str(port)]
    return [*serve, *targets, *places, "--exit-with-parent", *options]


async def directly(worker: Process) -> str:
    return worker.address


@asynccontextmanager
async def cluster(
    folder: Path,
    *,
    num_workers: int = 2,
    journal: str = "",
    store: str = "",
    gateway_options: Sequence[str] = (),
    gateway_prefix: Sequence[str] = (),
    reach_first: Callable[[Process], Awaitable[str]] = directly,
    networks: Mapping[str, Namespace] | None = None,
    make_stage: Callable[..., list[str]] = stage_command,
    **stage_options: object,
) -> AsyncIterator[Cluster]:
    """Everything started and serving; all of it is killed at the end.

    `reach_first` is where the gateway finds the first worker of each stage; `networks` where workers run, by name.
    """
    async with AsyncExitStack() as stack:
        made = Cluster(folder)
        for stage in WORKERS:
            made.workers[stage] = []
            for place in range(num_workers):
                name = f"{stage} {place}"
                network = (networks or {}).get(name)
                command = make_stage(
                    stage, port=free_port(), host=network.host if network else "127.0.0.1", **stage_options
                )
                worker = Process(
                    name, command, prefix=network.prefix if network else (), log=folder / f"{name}.log"
                )
                stack.push_async_callback(worker.close)
                made.workers[stage].append(worker)
        await asyncio.gather(*(worker.start() for worker in made.all_workers()))
        addresses = {
            stage: [await reach_first(workers[0]), *(one.address for one in workers[1:])]
            for stage, workers in made.workers.items()
        }
        made.known_addresses = {one for found in addresses.values() for one in found}
        made.gateway = Process(
            "gateway",
            gateway_command(
                addresses,
                journal=journal or str(folder / "journal.db"),
                store=store or str(folder / "pictures"),
                port=free_port(),
                options=gateway_options,
            ),
            prefix=gateway_prefix,
            log=folder / "gateway.log",
        )
        stack.push_async_callback(made.gateway.close)
        await made.gateway.start()
        yield made
