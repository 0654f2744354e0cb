"""The async client of a gateway: runs as streams of events, and errors with types.

Imports grpc and protobuf and nothing heavier. It knows the contract, not how a gateway works.

CallError              any other status; `reason` says which
├── InvalidRequest     a field cannot be served; `violations` says which and why
├── NotFound           no such run or image here
├── RequestIdReused    the request_id was used before with another spec
├── Busy               the queue is full; come back after `retry_after_s`
├── NoWorker           nobody serves a stage of the run now
└── Unreachable        nobody answers at the address
"""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    DownloadImageRequest,
    Event,
    GetRunRequest,
    ListModelsRequest,
    ListModelsResponse,
    Run,
    RunSpec,
    StreamRunRequest,
    StreamRunResponse,
    WatchRunRequest,
    WatchRunResponse,
)
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

ERROR_DOMAIN = "triptych"

# What a caller needs of the options that services/channels.py explains; the layer above cannot be imported here.
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 32 * 2**20),
    ("grpc.max_send_message_length", 32 * 2**20),
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)

# For calls that answer at once; a stream has the caller's own deadline or none.
UNARY_TIMEOUT_S = 30.0

Answer = TypeVar("Answer")
EventStream = (
    grpc.aio.UnaryStreamCall[StreamRunRequest, StreamRunResponse]
    | grpc.aio.UnaryStreamCall[WatchRunRequest, WatchRunResponse]
)


@dataclass(frozen=True)
class ErrorDetails:
    """What the details of a status say; all empty when the server attached none."""

    reason: str = ""
    retry_after_s: float | None = None
    # Descriptions by the path of the field.
    violations: Mapping[str, str] = field(default_factory=dict)


def read_details(error: grpc.aio.AioRpcError) -> ErrorDetails:
    """Reads ErrorInfo, RetryInfo and BadRequest; details that do not parse count as none."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the three methods of a Call it reads
    except ValueError:  # the details contradict the status: not ours
        status = None
    if status is None:
        return ErrorDetails()
    reason, retry_after_s, violations = "", None, {}
    for packed in status.details:
        info, retry, bad = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.BadRequest(),
        )
        if packed.Unpack(info) and info.domain == ERROR_DOMAIN:
            reason = info.reason
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif packed.Unpack(bad):
            violations = {violation.field: violation.description for violation in bad.field_violations}
    return ErrorDetails(reason, retry_after_s, violations)


class CallError(Exception):
    """A call failed; its text is the server's own. `retry_after_s` is None where a retry cannot help."""

    def __init__(self, message: str, code: grpc.StatusCode, details: ErrorDetails) -> None:
        super().__init__(message)
        self.code = code
        self.reason = details.reason or code.name
        self.retry_after_s = details.retry_after_s
        self.violations = dict(details.violations)


class InvalidRequest(CallError):
    pass


class NotFound(CallError):
    pass


class RequestIdReused(CallError):
    pass


class Busy(CallError):
    pass


class NoWorker(CallError):
    pass


class Unreachable(CallError):
    pass


_BY_REASON = {"QUEUE_FULL": Busy, "NO_WORKER": NoWorker, "REQUEST_ID_REUSED": RequestIdReused}
_BY_CODE = {grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest, grpc.StatusCode.NOT_FOUND: NotFound}


def to_call_error(error: grpc.aio.AioRpcError, address: str) -> CallError:
    """The typed error of a failed call to `address`."""
    details, code, message = read_details(error), error.code(), error.details() or error.code().name
    if code == grpc.StatusCode.UNAVAILABLE and not details.reason:
        message = f"no gateway answers at {address}; start one with `triptych serve gateway` ({message})"
        return Unreachable(message, code, details)
    kind = _BY_REASON.get(details.reason) or _BY_CODE.get(code) or CallError
    return kind(message, code, details)


class Client:
    """A connection to one gateway: `async with Client("127.0.0.1:50050") as client: ...`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = PipelineServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    def stream_run(
        self, spec: RunSpec, *, request_id: str = "", detach: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[Event]:
        """Yields the events of a new run, or of the run that `request_id` already made; pictures come with their data.

        Closing the iterator, or cancelling the task that reads it, cancels the run unless it is detached.
        Raises CallError, after the `finished` event when the run itself failed.
        """
        request = StreamRunRequest(request_id=request_id or uuid.uuid4().hex, spec=spec, detach=detach)
        return self._events(lambda: self._stub.StreamRun(request, timeout=timeout_s))

    def watch_run(
        self, name: str, *, after_sequence: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Event]:
        """Yields a run's events after that sequence number, then follows it to its end; never cancels it."""
        request = WatchRunRequest(name=name, after_sequence=after_sequence)
        return self._events(lambda: self._stub.WatchRun(request, timeout=timeout_s))

    async def cancel_run(self, name: str, images: Sequence[str] = ()) -> Run:
        """Stops a run, or only the images named; a second time changes nothing."""
        request = CancelRunRequest(name=name, images=images)
        return (await self._answer(self._stub.CancelRun(request, timeout=UNARY_TIMEOUT_S))).run

    async def get_run(self, name: str) -> Run:
        """The run as it stands; its images without their data."""
        return (await self._answer(self._stub.GetRun(GetRunRequest(name=name), timeout=UNARY_TIMEOUT_S))).run

    async def list_models(self) -> list[ListModelsResponse.StageModel]:
        """What each stage serves now, and by how many workers."""
        answer = await self._answer(self._stub.ListModels(ListModelsRequest(), timeout=UNARY_TIMEOUT_S))
        return list(answer.models)

    async def download_image(self, name: str, *, timeout_s: float | None = None) -> bytes:
        """An image's file."""
        call = self._stub.DownloadImage(DownloadImageRequest(name=name), timeout=timeout_s)
        with self._typed_errors():
            return b"".join([part.chunk async for part in call])

    async def _events(self, start: Callable[[], EventStream]) -> AsyncGenerator[Event]:
        call = start()
        try:
            with self._typed_errors():
                async for response in call:
                    event = response.event
                    if event.HasField("image_ready") and not event.image_ready.image.data:
                        image = event.image_ready.image
                        image.data = await self.download_image(image.name)
                    yield event
        finally:
            call.cancel()

    async def _answer(self, call: Awaitable[Answer]) -> Answer:
        with self._typed_errors():
            return await call

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise to_call_error(error, self.address) from None
