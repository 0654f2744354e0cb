"""Runs gRPC servicers with health, reflection and draining.

`serving` is the whole life of a server as a context manager: production and tests use the same one.
"""

import asyncio
import functools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.errors import TriptychError
from services.serving.channels import SERVER_OPTIONS
from services.serving.limits.call_gate import Authenticate, CallGate
from services.serving.limits.connection_guard import close_connection, guarding
from services.serving.limits.request_budget import RequestBudget
from services.serving.request_log import RequestLog
from services.serving.tls import CertificateFiles, server_credentials

log = logging.getLogger(__name__)

# After the grace: what a process has to end in by itself, and to be ended in otherwise, is below two seconds.
END_TIMEOUT_S = 1.5


class AddressInUse(TriptychError):
    reason = "ADDRESS_IN_USE"


@dataclass(frozen=True)
class Serving:
    """A server that listens. Its services are NOT_SERVING until `set_serving(True)`."""

    port: int
    address: str
    checks: health.aio.HealthServicer
    services: Sequence[str]

    async def set_serving(self, is_serving: bool, names: Sequence[str] | None = None) -> None:
        """What health checks of these names are answered; None: of the server and its services."""
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if is_serving else states.NOT_SERVING
        for name in ("", *self.services) if names is None else names:
            await self.checks.set(name, status)


@asynccontextmanager
async def serving(
    add_servicers: Callable[[grpc.aio.Server], None],
    *,
    services: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 0,
    grace_s: float | Callable[[], float] = 30.0,
    authenticate: Authenticate | None = None,
    budget: RequestBudget | None = None,
    request_log: RequestLog | None = None,
    certificate: CertificateFiles | None = None,
    health_port: int | None = None,
    options: Sequence[tuple[str, int]] = SERVER_OPTIONS,
) -> AsyncIterator[Serving]:
    """Listens inside the block; `services` are the full names that health and reflection know.

    `authenticate` names the caller of each call before its request is read. Without a `certificate` nothing is
    encrypted; see listen_options.py for where that may be. `health_port` answers health checks without it, and nothing else.
    On exit the server reports NOT_SERVING, takes no new call and waits `grace_s` for those that run, or what is left of it
    by then if it is a function.
    Raises AddressInUse.
    """
    calls = CallGate(authenticate=authenticate, budget=budget, request_log=request_log)
    server = grpc.aio.server(interceptors=[calls], options=options)
    add_servicers(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    bound = _listen(server, host, port, "--port", certificate)
    running = Serving(bound, f"{_in_brackets(host)}:{bound}", checks, services)
    await running.set_serving(False)
    probes = grpc.aio.server(interceptors=[CallGate()], options=SERVER_OPTIONS)
    if health_port is not None:
        health_pb2_grpc.add_HealthServicer_to_server(checks, probes)
        _listen(probes, host, health_port, "--health-port")
        await probes.start()
    await server.start()
    ports = [bound] if health_port is None else [bound, health_port]
    calls.close_connection = functools.partial(close_connection, ports)
    try:
        async with guarding(ports, calls.is_busy):
            yield running
    finally:
        await checks.enter_graceful_shutdown()
        left_s = grace_s() if callable(grace_s) else grace_s
        stopping = asyncio.create_task(server.stop(left_s or None))
        idle = asyncio.create_task(calls.idle.wait())
        await asyncio.wait([stopping, idle], return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # An open health Watch would count as a running call for all of the grace.
        await server.stop(None)
        await stopping
        await probes.stop(None)


def _listen(
    server: grpc.aio.Server, host: str, port: int, option: str, certificate: CertificateFiles | None = None
) -> int:
    """The port that it listens on; raises AddressInUse."""
    address = f"{_in_brackets(host)}:{port}"
    try:
        if certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(certificate))
    except RuntimeError:
        raise AddressInUse(
            f"cannot listen on {address}: the port is in use or the address is not of this machine; "
            f"choose another {option}, or 0 for any free one"
        ) from None


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class StopSignal(asyncio.Event):
    """Set by SIGINT, SIGTERM and others who want the process to stop; from then on its grace runs out.

    With `ends_process` the process ends END_TIMEOUT_S after the grace, whatever it waits for then: a disk, a database.
    `starting` is cancelled instead where there is nothing yet that could finish.
    """

    def __init__(self, grace_s: float, *, ends_process: bool = False) -> None:
        super().__init__()
        self.starting: asyncio.Task[object] | None = None
        self._grace_s = grace_s
        self._ends_process = ends_process
        self._ends_at = 0.0

    def set(self) -> None:
        """The first call counts."""
        if self.is_set():
            return
        super().set()
        if self.starting is not None:
            self._grace_s = 0.0
            self.starting.cancel()
        self._ends_at = time.monotonic() + self._grace_s
        if self._ends_process:
            threading.Thread(target=_end_process, args=(self._grace_s,), name="end", daemon=True).start()

    def left_s(self) -> float:
        """Of the grace: all of it until this is set."""
        return max(0.0, self._ends_at - time.monotonic()) if self.is_set() else self._grace_s


@asynccontextmanager
async def stop_signal(
    *, grace_s: float = 0.0, with_parent: bool = False, ends_process: bool = False
) -> AsyncIterator[StopSignal]:
    """Is set by SIGINT and SIGTERM; and, `with_parent`, by the end of our standard input.

    A parent that is killed outright closes the pipe that it held, so its children notice even then.
    """
    stop = StopSignal(grace_s, ends_process=ends_process)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    if with_parent:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    try:
        yield stop
    except asyncio.CancelledError:
        # By `set`, which is a stop and no error.
        if stop.starting is None or not stop.is_set():
            raise
        stop.starting.uncancel()
        log.info("stopped while starting")
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _end_process(grace_s: float) -> None:
    """Ends the process in time. What is committed is on the disk, as after a kill."""
    time.sleep(grace_s + END_TIMEOUT_S)
    log.error(
        "something does not end: stopped without waiting for it any longer", extra={"event": "stop_timed_out"}
    )
    sys.stderr.flush()
    os._exit(1)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


def announce(service: str, address: str, **more: str) -> None:
    """Prints one line of JSON on standard output: the process that started this one learns that it serves."""
    sys.stdout.write(json.dumps({"service": service, "address": address, **more}) + "\n")
    sys.stdout.flush()
