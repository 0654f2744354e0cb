"""Runs gRPC servicers: errors with their statuses and details, health by service name, reflection, a stop that drains.

`serving` is the whole life of a server as a context manager: production and tests use the same one.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.errors import InvalidRequest, TriptychError
from services.serving.channels import SERVER_OPTIONS
from services.serving.tls import CertificateFiles, server_credentials

log = logging.getLogger(__name__)

ERROR_DOMAIN = "triptych"
Context = grpc.aio.ServicerContext[Any, Any]


class AddressInUse(TriptychError):
    reason = "ADDRESS_IN_USE"


def to_status(error: TriptychError) -> status_pb2.Status:
    """The google.rpc.Status of an error: ErrorInfo always, BadRequest for a field, RetryInfo if a retry can help."""
    details = [error_details_pb2.ErrorInfo(domain=ERROR_DOMAIN, reason=error.reason)]
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.status.value[0], message=str(error), details=packed)


async def abort(context: Context, error: TriptychError) -> None:
    """Ends the call with the error's status and details; raises, as `context.abort` does."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


def parse(deserializer: Callable[[bytes], Any] | None, data: Any) -> Any:
    """The request that a call brought; raises InvalidRequest for bytes that are no message of the method's.

    Interceptors that parse by themselves leave the handler without a deserializer; then it is done already.
    """
    if deserializer is None:
        return data
    try:
        return deserializer(data)
    except DecodeError:
        raise InvalidRequest("request", "must be a message of this method, with text in UTF-8") from None


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Gives our errors their status; any other exception is a bug: logged whole here, opaque to the caller.

    Health and reflection pass as they are: health's Watch is a coroutine that writes, not a generator.
    """

    def __init__(self) -> None:
        self._num_running = 0
        self.idle = asyncio.Event()  # set while none of our calls runs
        self.idle.set()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._num_running += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self.idle.set()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/triptych."):
            return handler
        # Parsed inside, not by gRPC, which answers a message that is none with an error of its own making.
        serializers = (None, handler.response_serializer)
        if handler.unary_stream:

            async def stream(data: Any, context: Context) -> AsyncIterator[Any]:
                try:
                    with self._counted():
                        request = parse(handler.request_deserializer, data)
                        async for response in handler.unary_stream(request, context):
                            yield response
                except Exception as error:  # noqa: BLE001 - the one place where everything ends
                    await _abort_for(error, details.method, context)

            return grpc.unary_stream_rpc_method_handler(stream, *serializers)

        async def unary(data: Any, context: Context) -> Any:
            try:
                with self._counted():
                    return await handler.unary_unary(parse(handler.request_deserializer, data), context)
            except Exception as error:  # noqa: BLE001 - as above
                return await _abort_for(error, details.method, context)

        return grpc.unary_unary_rpc_method_handler(unary, *serializers)


async def _abort_for(error: Exception, method: str, context: Context) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, TriptychError):
        log.error("%s failed", method, exc_info=error)
        error = TriptychError("internal error; see the server's log")
    await abort(context, error)


@dataclass(frozen=True)
class Serving:
    """A server that listens. Its services are NOT_SERVING until `set_serving(True)`."""

    port: int
    address: str
    checks: health.aio.HealthServicer
    services: Sequence[str]

    async def set_serving(self, is_serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if is_serving else states.NOT_SERVING
        for name in ("", *self.services):
            await self.checks.set(name, status)


@asynccontextmanager
async def serving(
    add_servicers: Callable[[grpc.aio.Server], None],
    *,
    services: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 0,
    grace_s: float = 30.0,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    certificate: CertificateFiles | None = None,
    health_port: int | None = None,
) -> AsyncIterator[Serving]:
    """Listens inside the block; `services` are the full names that health and reflection know.

    What `interceptors` raise gets its status as what the servicers raise does. Without a `certificate` nothing is
    encrypted; see listening.py for where that may be. `health_port` answers health checks without it, and nothing else.
    On exit the server says NOT_SERVING, takes no new call and waits `grace_s` for those that run.
    Raises AddressInUse.
    """
    calls = ErrorInterceptor()
    server = grpc.aio.server(interceptors=[calls, *interceptors], options=SERVER_OPTIONS)
    add_servicers(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    bound = _listen(server, host, port, "--port", certificate)
    running = Serving(bound, f"{_in_brackets(host)}:{bound}", checks, services)
    await running.set_serving(False)
    probes = grpc.aio.server(options=SERVER_OPTIONS)
    if health_port is not None:
        health_pb2_grpc.add_HealthServicer_to_server(checks, probes)
        _listen(probes, host, health_port, "--health-port")
        await probes.start()
    await server.start()
    try:
        yield running
    finally:
        await checks.enter_graceful_shutdown()
        stopping = asyncio.create_task(server.stop(grace_s or None))
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


@asynccontextmanager
async def stop_signal(*, with_parent: bool = False) -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set; and, `with_parent`, the end of our standard input.

    A parent that is killed outright closes the pipe that it held, so its children notice even then.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    if with_parent:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


def announce(service: str, address: str, **more: str) -> None:
    """Tells whoever started this process that it serves, in one line of JSON on standard output."""
    sys.stdout.write(json.dumps({"service": service, "address": address, **more}) + "\n")
    sys.stdout.flush()
