"""Runs `triptych serve` processes as children: starts them, waits until they serve, and leaves none behind.

A child reports on its stdout that it serves, logs to stderr, and stops when its stdin reaches its end: the kernel
closes that pipe however this process ends, kill -9 included.
"""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import click

from triptych._installation import child_command, child_environment, missing_server, server_folder

# Seconds that a child gives its running calls when it is asked to stop.
GRACE_S = 3
# A child that has had SIGTERM for so long is killed; it ends by itself a little before.
STOP_TIMEOUT_S = GRACE_S + 1.6
START_STOP_TIMEOUT_S = 1.0
# Lines of its log that are kept to say why a child stopped.
NUM_LAST_LINES = 40
MAX_LINE_BYTES = 2**20
# Options give each child its address. These variables are meant for services that are started one by one, so
# children do not inherit them.
DOORS = frozenset(
    f"TRIPTYCH_{option}"
    for option in (
        *("HOST", "PORT", "HTTP_PORT", "INSECURE", "TOKENS", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA"),
        "HEALTH_PORT",
        "METRICS_PORT",
        *("STAGE_CA", "STAGE_CERT", "STAGE_KEY"),
    )
)


@dataclass(frozen=True)
class ServiceReady:
    """What a service said of itself when it began to serve."""

    service: str
    address: str
    model: str = ""
    # Of the gateway's page, where it serves one.
    http: str = ""


@dataclass
class Child:
    """One `triptych serve NAME` process."""

    name: str
    process: Process
    on_log: Callable[[str, str], None] | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_LAST_LINES))

    def __post_init__(self) -> None:
        self.output = cast(asyncio.StreamReader, self.process.stdout)
        self.log_reader = asyncio.create_task(self._read_log())
        self.output_reader: asyncio.Task[None] | None = None

    async def ready(self) -> ServiceReady:
        """Waits until it serves; raises ClickException with its own last words when it stops instead."""
        async for line in lines_of(self.output):
            with suppress(ValueError, KeyError, TypeError):
                announced = json.loads(line)
                ready = ServiceReady(
                    announced["service"],
                    announced["address"],
                    announced.get("model", ""),
                    announced.get("http", ""),
                )
                self.output_reader = asyncio.create_task(drain(self.output))
                return ready
        raise click.ClickException(f"the {self.name} did not start: {await self.last_output()}")

    async def last_output(self) -> str:
        """Waits for its end and returns the reason: its own error message if it left one."""
        code = await self.process.wait()
        await self.log_reader
        for line in reversed(self.last_lines):
            if line.startswith("Error: "):
                return line.removeprefix("Error: ")
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}" + (
                "; is there enough memory?" if -code == signal.SIGKILL else ""
            )
        last = next((line.strip() for line in reversed(self.last_lines) if line.strip()), "it said nothing")
        return f"exit code {code}, last words: {last}"

    async def stop(self) -> None:
        """Asks it to stop, waits, and kills it when it does not; before it serves there is little to wait for."""
        is_serving = self.output_reader is not None
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(
                self.process.wait(), STOP_TIMEOUT_S if is_serving else START_STOP_TIMEOUT_S
            )
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self.process.wait()
        finally:
            for reader in (self.log_reader, self.output_reader):
                if reader is not None:
                    reader.cancel()

    def _signal(self, number: int) -> None:
        # Not `process.terminate()`: it may reap a child that has just ended before asyncio does, which then loses
        # the exit code.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def _read_log(self) -> None:
        async for line in lines_of(cast(asyncio.StreamReader, self.process.stderr)):
            self.last_lines.append(line)
            if self.on_log is not None:
                self.on_log(self.name, line)


async def launch(
    name: str, options: Sequence[str], on_log: Callable[[str, str], None] | None = None
) -> Child:
    """Starts `triptych serve NAME` on a free port of loopback; a second one of a stage is "NAME 2"."""
    process = await asyncio.create_subprocess_exec(
        *child_command("serve", service_of(name), "--exit-with-parent", "--grace", str(GRACE_S), *options),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=MAX_LINE_BYTES,
        # A process group of its own: Ctrl-C in the terminal reaches this process alone, which stops them in order.
        start_new_session=True,
        env={name: value for name, value in child_environment().items() if name not in DOORS}
        | {"PYTHONUNBUFFERED": "1"},
    )
    return Child(name, process, on_log)


def service_of(name: str) -> str:
    """The service of a child: "generator" of "generator 2"."""
    return name.partition(" ")[0]


@dataclass(frozen=True)
class Pipeline:
    """Four running services, or as many as were asked for."""

    gateway: ServiceReady
    stages: Mapping[str, ServiceReady]
    children: Sequence[Child]

    async def first_end(self) -> str:
        """Waits until one of the children ends, which none should, and returns which and why."""
        waits = {asyncio.create_task(child.process.wait()): child for child in self.children}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        child = waits[done.pop()]
        return f"the {child.name} stopped: {await child.last_output()}"


@asynccontextmanager
async def running_pipeline(
    stages: Mapping[str, Sequence[str]],
    *,
    gateway_options: Sequence[str] = ("--host", "127.0.0.1", "--port", "0", "--journal", "none"),
    on_ready: Callable[[str, ServiceReady], None] = lambda _name, _ready: None,
    on_log: Callable[[str, str], None] | None = None,
) -> AsyncIterator[Pipeline]:
    """Runs stages, given by name with their options, and a gateway in front of them; stops all on exit.

    The stages start at the same time, the gateway when they serve. Raises ClickException when one cannot start.
    """
    if server_folder() is None:
        raise click.ClickException(missing_server())
    children: list[Child] = []

    async def start(name: str, options: Sequence[str]) -> ServiceReady:
        child = await launch(name, options, on_log)
        children.append(child)
        ready = await child.ready()
        on_ready(name, ready)
        return ready

    try:
        try:
            async with asyncio.TaskGroup() as group:
                starts = {name: group.create_task(start(name, options)) for name, options in stages.items()}
        except BaseExceptionGroup as failures:
            # The first to fail has cancelled the others; its message is enough.
            raise failures.exceptions[0] from None
        ready = {name: task.result() for name, task in starts.items()}
        addresses = [
            option for name, stage in ready.items() for option in (f"--{service_of(name)}", stage.address)
        ]
        gateway = await start("gateway", [*gateway_options, *addresses])
        yield Pipeline(gateway, ready, children)
    finally:
        await asyncio.gather(*(child.stop() for child in children))


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines of a stream as text; a line beyond MAX_LINE_BYTES is left out."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line.decode("utf-8", "replace").rstrip("\n")


async def drain(stream: asyncio.StreamReader) -> None:
    async for _ in lines_of(stream):
        pass
