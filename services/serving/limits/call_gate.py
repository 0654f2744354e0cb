"""Guards gRPC calls: authenticates before a request is read, and limits its size before it is parsed.

gRPC reads a unary request before it calls the handler. So every method is served as a stream of requests;
nothing is read until the gate asks for it; on the wire the two are the same. Errors get their status here.
"""

import asyncio
import logging
import re
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.errors import InvalidRequest, RateLimited, TriptychError
from services.serving.limits.request_budget import BODY_TIMEOUT_S, BodyTooSlow, RequestBudget, SmallReads
from services.serving.limits.wire_limits import check_num_fields, holds_files, message_type
from services.serving.request_log import RequestLog, RequestRecord, current_request
from services.serving.tracing.log_fields import logging_with
from triptych._grpc_options import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

ERROR_DOMAIN = "triptych"
Context = grpc.aio.ServicerContext[Any, Any]
# From the header `authorization` and the peer's address to the caller's name; raises a TriptychError.
Authenticate = Callable[[str | None, str], Awaitable[str]]

# Requests that hold no file; a run has hundreds of images, whose names CancelRun may list.
MAX_SMALL_BYTES = 2**20
# What a gateway calls the picture that it wants, for the log: "runs/0123456789abcdef/images/generate-0".
IMAGE_METADATA = "triptych-image"
_IMAGE = re.compile(r"(runs/[0-9a-f]{16})/images/([a-z]{1,20}-[0-9]{1,6})")
# Health and reflection, which anybody may call.
MAX_PUBLIC_BYTES = 4 * 2**10
# Larger messages are scanned and parsed beside the event loop.
PARSED_IN_PLACE_BYTES = 64 * 2**10
MAX_CALLS_PER_CALLER = 2_000
# Of callers that are not known, on one connection within so long: then it is closed. Each call takes a turn of the event
# loop, on which all others wait.
MAX_REFUSALS = 100
REFUSALS_WITHIN_S = 10.0
MAX_REFUSED_PEERS = 10_000


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


def host_of(peer: str) -> str:
    """ "ipv4:10.0.0.7:53122" -> "ipv4:10.0.0.7": the calls of one machine share its turns."""
    return peer.rpartition(":")[0] or peer


class CallGate(grpc.aio.ServerInterceptor):
    """Give it to the server as its only interceptor; `idle` is set while none of our own methods runs."""

    def __init__(
        self,
        *,
        authenticate: Authenticate | None = None,
        budget: RequestBudget | None = None,
        request_log: RequestLog | None = None,
    ) -> None:
        self._log = request_log or RequestLog()
        self._authenticate = authenticate
        self._budget = budget or RequestBudget()
        self._small_reads = SmallReads()
        self._num_calls: Counter[str] = Counter()
        self._peers: Counter[str] = Counter()
        # By connection: how many, and since when on the loop's clock.
        self._refusals: dict[str, tuple[int, float]] = {}
        # Ends the connection of a host and port.
        self.close_connection: Callable[[str, int], None] = lambda _host, _port: None
        self._num_open = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def is_busy(self, host: str, port: int) -> bool:
        """Whether a call of that connection runs."""
        host = host.removeprefix("::ffff:")
        return (f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}") in self._peers

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        method, header = details.method, _metadata(details, "authorization")
        traceparent = _metadata(details, "traceparent") or ""
        image = _metadata(details, IMAGE_METADATA) or ""

        async def serve(_requests: object, context: Context) -> None:
            if self._is_flooding(context.peer()):
                # Its connection is closed; of these calls nobody waits for an answer.
                context.set_code(grpc.StatusCode.UNAVAILABLE)
                return
            if method.startswith("/triptych."):
                self._open(context)
            record = RequestRecord("grpc", method, peer=context.peer(), traceparent=traceparent)
            with (
                _counted(self._peers, context.peer()),
                _logging_image(image),
                self._log.recording(record),
            ):
                error = await self._serve(handler, method, header, context)
                record.code = error.status.name if error is not None else "OK"
                record.reason = error.reason if error is not None else ""
            if error is not None:
                # Not `context.abort`: its exception and the frame that it was raised in would keep each other, and
                # with them the request, until the garbage collector comes by.
                status = rpc_status.to_status(to_status(error))
                context.set_code(status.code)
                context.set_details(status.details)
                context.set_trailing_metadata(status.trailing_metadata)

        return grpc.stream_stream_rpc_method_handler(serve, None, handler.response_serializer)

    def _open(self, context: Any) -> None:
        """Counts the call until its status is sent: a server that stops before that would lose the status."""
        self._num_open += 1
        self.idle.clear()

        def close(_: object) -> None:
            self._num_open -= 1
            if not self._num_open:
                self.idle.set()

        context.add_done_callback(close)

    async def _serve(
        self, handler: Any, method: str, header: str | None, context: Context
    ) -> TriptychError | None:
        """Serves the call; what went wrong, where something did."""
        try:
            if not method.startswith("/triptych."):
                await self._serve_public(handler, context)
                return None
            peer = host_of(context.peer())
            caller = peer if self._authenticate is None else await self._find_caller(header, context)
            if (record := current_request()) is not None:
                record.caller = caller
            with self._counting(caller):
                await self._serve_ours(handler, caller, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if isinstance(error, TriptychError):
                _forget_frames(error)
                return error
            log.error("%s failed", method, exc_info=error)  # noqa: TRY400 - it names the error itself
            _forget_frames(error)
            return TriptychError("internal error; see the server's log")
        return None

    async def _find_caller(self, header: str | None, context: Context) -> str:
        """Raises a TriptychError for a caller that is not known."""
        assert self._authenticate is not None  # noqa: S101 - asked only then
        try:
            return await self._authenticate(header, host_of(context.peer()))
        except TriptychError:
            self._count_refusal(context.peer())
            raise

    def _is_flooding(self, peer: str) -> bool:
        count, since = self._refusals.get(peer, (0, 0.0))
        return count >= MAX_REFUSALS and time.monotonic() - since < REFUSALS_WITHIN_S

    def _count_refusal(self, peer: str) -> None:
        now = time.monotonic()
        count, since = self._refusals.pop(peer, (0, now))
        if now - since >= REFUSALS_WITHIN_S:
            count, since = 0, now
        self._refusals[peer] = count + 1, since
        # The oldest are first.
        while len(self._refusals) > MAX_REFUSED_PEERS:
            del self._refusals[next(iter(self._refusals))]
        if count + 1 == MAX_REFUSALS:
            log.warning(
                "closed the connection of %s after %d refused calls",
                peer,
                MAX_REFUSALS,
                extra={"event": "connection_closed", "peer": peer},
            )
            host, _, port = peer.partition(":")[2].rpartition(":")
            if port.isdecimal():
                self.close_connection(unquote(host).strip("[]"), int(port))

    async def _serve_ours(self, handler: Any, caller: str, context: Context) -> None:
        kind = message_type(handler.request_deserializer)
        if kind is not None and holds_files(kind.DESCRIPTOR):
            async with self._budget.reserving(caller, MAX_MESSAGE_BYTES) as reservation:
                data = await _read_large(context)
                reservation.shrink(len(data))
                await _check(kind, data)
                request = [parse_message(handler.request_deserializer, data)]
                del data
                await _respond(handler, request, context, reservation.release)
            return
        data = await self._read_small(context, MAX_SMALL_BYTES)
        if kind is not None:
            await _check(kind, data)
        await _respond(handler, [parse_message(handler.request_deserializer, data)], context, lambda: None)

    async def _serve_public(self, handler: Any, context: Context) -> None:
        if handler.request_streaming:

            async def requests() -> AsyncIterator[Any]:
                while (data := await self._read_small(context, MAX_PUBLIC_BYTES, may_end=True)) is not None:
                    yield parse_message(handler.request_deserializer, data)

            async with aclosing(handler.stream_stream(requests(), context)) as responses:
                async for response in responses:
                    await context.write(response)
            return
        data = await self._read_small(context, MAX_PUBLIC_BYTES)
        await _respond(handler, [parse_message(handler.request_deserializer, data)], context, lambda: None)

    async def _read_small(self, context: Context, max_bytes: int, *, may_end: bool = False) -> Any:
        data = await self._small_reads.read(context.read())
        if data is grpc.aio.EOF:
            if may_end:
                return None
            raise InvalidRequest("request", "must be one message, got none")
        if len(data) > max_bytes:
            raise InvalidRequest("request", f"must have at most {max_bytes} bytes, got {len(data)}")
        return data

    @contextmanager
    def _counting(self, caller: str) -> Iterator[None]:
        if self._num_calls[caller] >= MAX_CALLS_PER_CALLER:
            raise RateLimited(
                f"this caller has {MAX_CALLS_PER_CALLER} calls under way; let some end", retry_after_s=1.0
            )
        with _counted(self._num_calls, caller):
            yield


@contextmanager
def _logging_image(image: str) -> Iterator[None]:
    """The lines of a stage have the run and the image that a gateway names."""
    match = _IMAGE.fullmatch(image)
    with logging_with(run=match[1], image=match[2]) if match else nullcontext():
        yield


@contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def _metadata(details: grpc.HandlerCallDetails, name: str) -> str | None:
    return next((str(value) for key, value in details.invocation_metadata or () if key == name), None)


async def _read_large(context: Context) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await context.read()
    except TimeoutError:
        raise BodyTooSlow(f"the request must be here within {BODY_TIMEOUT_S:g} s") from None
    if data is grpc.aio.EOF:
        raise InvalidRequest("request", "must be one message, got none")
    return data


async def _check(kind: Any, data: bytes) -> None:
    if len(data) > PARSED_IN_PLACE_BYTES:
        await asyncio.to_thread(check_num_fields, data, kind.DESCRIPTOR)
    else:
        check_num_fields(data, kind.DESCRIPTOR)


def parse_message(deserializer: Callable[[bytes], Any], data: bytes) -> Any:
    """Raises InvalidRequest for bytes that are no message of the method's."""
    try:
        return deserializer(data)
    except DecodeError:
        raise InvalidRequest("request", "must be a message of this method, with text in UTF-8") from None


async def _respond(
    handler: Any, request: list[Any], context: Context, on_response: Callable[[], None]
) -> None:
    """Calls the handler. The request is taken out of its list, so that the handler alone decides how long it lives."""
    if handler.unary_unary is not None:
        response = await handler.unary_unary(request.pop(), context)
        on_response()
        await context.write(response)
        return
    responses = handler.unary_stream(request.pop(), context)
    if asyncio.iscoroutine(responses):  # health's Watch writes by itself
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            on_response()
            await context.write(response)


def _forget_frames(error: BaseException) -> None:
    """Releases what the error's frames hold, such as the request that was refused."""
    pending, seen = [error], set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None
        pending += [other for other in (one.__cause__, one.__context__) if other is not None]
