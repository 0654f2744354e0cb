"""The async client of a gateway. Imports grpc and protobuf and nothing heavier; it knows the contract, not the gateway.

Methods named after a call of the contract are that one call, with errors that have types (triptych/errors.py).
`run`, `watch` and `select` are what most programs want: they survive broken connections and gather the result.
"""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

import grpc

from triptych._connection import Connection
from triptych._download import ReadFrom, download, download_to
from triptych._reconnect import Backoff, RetryState, deadline, left, repeated
from triptych._run_stream import RunStream
from triptych._selection import image_names, selected_stage
from triptych.credentials import Credentials
from triptych.errors import (
    Busy,
    CallError,
    DamagedImage,
    DeadlineExceeded,
    ErrorDetails,
    ImageLost,
    InvalidRequest,
    NotFound,
    NoWorker,
    PermissionDenied,
    RequestIdReused,
    RunFailed,
    Unauthenticated,
    Unreachable,
    read_details,
    to_call_error,
)
from triptych.result import Picture, RunResult
from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    CreateRunRequest,
    DeleteRunRequest,
    DownloadImageRequest,
    DownloadImageResponse,
    Event,
    GetRunRequest,
    Image,
    ListModelsRequest,
    ListModelsResponse,
    ListRunsRequest,
    MoveRunRequest,
    ReadPromptRequest,
    RefineStage,
    Run,
    RunSpec,
    RunState,
    SelectImagesRequest,
    StreamRunRequest,
    StreamRunResponse,
    UpscaleStage,
    WatchRunRequest,
    WatchRunResponse,
)
from triptych.v1.stage_pb2 import PromptReading

# With the client come the errors that its callers catch.
__all__ = [
    "Client",
    "Busy",
    "CallError",
    "DamagedImage",
    "DeadlineExceeded",
    "ErrorDetails",
    "ImageLost",
    "InvalidRequest",
    "NotFound",
    "NoWorker",
    "PermissionDenied",
    "RequestIdReused",
    "RunFailed",
    "Unauthenticated",
    "Unreachable",
    "read_details",
    "to_call_error",
]
if TYPE_CHECKING:
    from triptych.v1.pipeline_pb2_grpc import PipelineServiceAsyncStub

# For calls that answer at once; a stream has the caller's own deadline or none.
UNARY_TIMEOUT_S = 30.0
# For telling the gateway that a run is left, when nobody waits for the answer.
LEAVE_TIMEOUT_S = 2.0
PAGE_SIZE = 100

EventStream = (
    grpc.aio.UnaryStreamCall[StreamRunRequest, StreamRunResponse]
    | grpc.aio.UnaryStreamCall[WatchRunRequest, WatchRunResponse]
)


class Client:
    """A connection to one gateway: `async with Client("127.0.0.1:50050") as client: ...`."""

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        backoff: Backoff | None = None,
        max_loaded_pixels: int | None = None,
    ) -> None:
        """`token` and the PEM files as in triptych/credentials.py; `backoff` limits how long broken calls are retried.

        With `ca`, or where the address begins with https://, the connection is encrypted. New calls take up files that
        have changed. Raises OSError for a file that cannot be read. Images of more than `max_loaded_pixels` come in
        events without their data, to be written to files by `save_image`; None: all are loaded.
        """
        self.address = address
        self._max_loaded_pixels = max_loaded_pixels
        self._backoff = backoff or Backoff()
        self._streams: WeakSet[RunStream] = WeakSet()
        self._connection = Connection(address, Credentials(token, ca, cert, key))
        self._answer = self._connection.answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leaves the runs that are still followed, then ends the connection."""
        for stream in list(self._streams):
            await stream.aclose()
        await self._connection.close()

    def run(
        self,
        prompt: str | RunSpec,
        *,
        request_id: str = "",
        detach: bool | None = None,
        timeout_s: float | None = None,
        show: bool | None = None,
    ) -> RunStream:
        """Makes pictures: iterate over what it returns for the events, or await it for the result.

        Leaving before the end cancels the run, unless it is detached; a run in manual mode is, since people take their
        time. Another call with the same `request_id` (made up here where there is none) joins the same run, which then
        is cancelled a little after the last of them has left. `timeout_s` bounds the whole of it. `show`: whether a live contact sheet is shown, by default in notebooks.
        """
        spec = RunSpec(prompt=prompt) if isinstance(prompt, str) else prompt
        leave = no_cancel if request_id else self._leave
        request_id = request_id or uuid.uuid4().hex
        if detach is None:
            detach = spec.HasField("manual")
        deadline_s = deadline(timeout_s)

        async def begin() -> int:
            return 0

        def follow(after_sequence: int) -> AsyncGenerator[Event]:
            request = StreamRunRequest(
                request_id=request_id, spec=spec, detach=detach, after_sequence=after_sequence
            )
            return self._events(lambda: self._stub.StreamRun(request, timeout=left(deadline_s)))

        return self._opened(
            begin,
            follow,
            RunResult(),
            request_id=request_id,
            deadline_s=deadline_s,
            leave=None if detach else leave,
            show=show,
        )

    def watch(
        self,
        name: str,
        *,
        after_sequence: int = 0,
        timeout_s: float | None = None,
        show: bool | None = None,
    ) -> RunStream:
        """Follows a run that there is, from its first event or later; leaving it changes nothing."""
        deadline_s = deadline(timeout_s)

        result = RunResult(name=name)

        async def begin() -> int:
            if after_sequence:
                # What the first event would have said.
                run = await repeated(lambda: self.get_run(name), self._backoff)
                result.prompt, result.seed = run.spec.prompt, run.spec.seed
            return after_sequence

        return self._opened(
            begin,
            lambda after: self.watch_run(name, after_sequence=after, timeout_s=left(deadline_s)),
            result,
            deadline_s=deadline_s,
            show=show,
        )

    def select(
        self,
        images: str | Picture | Iterable[str | Picture],
        *,
        refine: int | RefineStage | None = None,
        upscale: bool | UpscaleStage = False,
        request_id: str = "",
        timeout_s: float | None = None,
        show: bool | None = None,
    ) -> RunStream:
        """Takes finished pictures of a run to one more stage: so many variations of each, or an upscaled picture.

        To be iterated over or awaited as in `run`; its result has the new pictures. Nothing happens before that.
        """
        names = image_names(images)
        stage = selected_stage(refine, upscale)
        selections = [SelectImagesRequest.Selection(image=name, **stage) for name in names]
        run_name = names[0].partition("/images/")[0]
        request_id = request_id or uuid.uuid4().hex
        deadline_s = deadline(timeout_s)
        result = RunResult(name=run_name)

        async def begin() -> int:
            # Before the selection, so that none of the events that it causes is missed.
            run = await repeated(lambda: self.get_run(run_name), self._backoff)
            result.prompt, result.seed = run.spec.prompt, run.spec.seed
            await self.select_images(run_name, selections, request_id=request_id)
            return run.last_sequence

        return self._opened(
            begin,
            lambda after: self.watch_run(run_name, after_sequence=after, timeout_s=left(deadline_s)),
            result,
            request_id=request_id,
            deadline_s=deadline_s,
            show=show,
        )

    async def create_run(
        self, spec: RunSpec, *, request_id: str = "", webhook_url: str = "", in_turn: bool = False
    ) -> Run:
        """Begins a run that goes on by itself; begun once, over however many connections.

        With `in_turn` it waits until no other run of the caller is under way; `move_run` changes its place.
        """
        request = CreateRunRequest(
            request_id=request_id or uuid.uuid4().hex, spec=spec, webhook_url=webhook_url, in_turn=in_turn
        )
        answer = await repeated(
            lambda: self._answer(self._stub.CreateRun(request, timeout=UNARY_TIMEOUT_S)),
            self._backoff,
        )
        return answer.run

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

    async def select_images(
        self, name: str, selections: Sequence[SelectImagesRequest.Selection], *, request_id: str = ""
    ) -> Run:
        """Takes images of a run to stages; done once, over however many connections."""
        request = SelectImagesRequest(
            request_id=request_id or uuid.uuid4().hex, name=name, selections=selections
        )
        answer = await repeated(
            lambda: self._answer(self._stub.SelectImages(request, timeout=UNARY_TIMEOUT_S)),
            self._backoff,
        )
        return answer.run

    async def move_run(self, name: str, *, before: str = "", after: str = "", now: bool = False) -> Run:
        """Moves a run that waits to begin: before or after another one of its caller's, or to begin `now`; with none of
        them it is the next. Raises CallError with RUN_NOT_QUEUED for one that does not wait."""
        if bool(before) + bool(after) + now > 1:
            raise ValueError("expected one of before, after and now")
        request = MoveRunRequest(name=name)
        if before:
            request.before = before
        elif after:
            request.after = after
        elif now:
            request.now = True
        return (await self._answer(self._stub.MoveRun(request, timeout=UNARY_TIMEOUT_S))).run

    async def cancel_run(self, name: str, images: Sequence[str] = ()) -> Run:
        """Stops a run, or only the images named; a second time changes nothing."""
        request = CancelRunRequest(name=name, images=images)
        return (await self._answer(self._stub.CancelRun(request, timeout=UNARY_TIMEOUT_S))).run

    async def get_run(self, name: str) -> Run:
        """The run as it stands; its images without their data."""
        return (await self._answer(self._stub.GetRun(GetRunRequest(name=name), timeout=UNARY_TIMEOUT_S))).run

    async def list_runs(self, states: Sequence[RunState.ValueType] = ()) -> AsyncGenerator[Run]:
        """The caller's runs, newest first, page by page as they are read; with `states` only those in one of them."""
        request = ListRunsRequest(page_size=PAGE_SIZE, states=states)
        while True:
            page = await self._answer(self._stub.ListRuns(request, timeout=UNARY_TIMEOUT_S))
            for run in page.runs:
                yield run
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_run(self, name: str) -> None:
        """Deletes a finished run and the pictures that no other run has."""
        await self._answer(self._stub.DeleteRun(DeleteRunRequest(name=name), timeout=UNARY_TIMEOUT_S))

    async def list_models(self) -> list[ListModelsResponse.StageModel]:
        """What each stage serves now, and by how many workers."""
        answer = await self._answer(self._stub.ListModels(ListModelsRequest(), timeout=UNARY_TIMEOUT_S))
        return list(answer.models)

    async def read_prompt(self, prompt: str, *, model: str = "") -> PromptReading:
        """What the generator would draw for a prompt: which words it replaces, before anything is made."""
        request = ReadPromptRequest(prompt=prompt, model=model)
        answer = await self._answer(self._stub.ReadPrompt(request, timeout=UNARY_TIMEOUT_S))
        return answer.reading

    async def download_image(self, name: str, *, timeout_s: float | None = None) -> bytes:
        """An image's file, gone on with where a connection broke, and checked against its sha256.

        Raises DamagedImage when it is not what the gateway meant to send.
        """
        deadline_s = deadline(timeout_s)
        return await download(name, self._reader_of(name, deadline_s), RetryState(self._backoff, deadline_s))

    async def save_image(self, name: str, path: str | Path, *, timeout_s: float | None = None) -> Path:
        """As `download_image`, into a file: an image of any size takes a megabyte of memory. Returns the path.

        The file appears when it is complete. Raises OSError where it cannot be written.
        """
        deadline_s, path = deadline(timeout_s), Path(path)
        await download_to(
            name, self._reader_of(name, deadline_s), RetryState(self._backoff, deadline_s), path
        )
        return path

    def loads(self, image: Image) -> bool:
        """Whether an image of that size comes in events with its data."""
        return self._max_loaded_pixels is None or image.width * image.height <= self._max_loaded_pixels

    def _reader_of(self, name: str, deadline_s: float | None) -> ReadFrom:
        async def read_from(offset: int) -> AsyncGenerator[DownloadImageResponse]:
            request = DownloadImageRequest(name=name, offset=offset)
            with self._connection.typed_errors():
                async for part in self._stub.DownloadImage(request, timeout=left(deadline_s)):
                    yield part

        return read_from

    @property
    def _stub(self) -> "PipelineServiceAsyncStub":
        return self._connection.stub

    def _opened(
        self,
        begin: Callable[[], Awaitable[int]],
        follow: Callable[[int], AsyncGenerator[Event]],
        result: RunResult,
        *,
        request_id: str = "",
        deadline_s: float | None,
        leave: Callable[[str], Awaitable[None]] | None = None,
        show: bool | None,
    ) -> RunStream:
        stream = RunStream(
            begin,
            follow,
            self._is_idle,
            result,
            request_id=request_id,
            backoff=self._backoff,
            deadline_s=deadline_s,
            leave=leave,
            show=show,
        )
        self._streams.add(stream)
        return stream

    async def _is_idle(self, name: str, sequence: int) -> bool:
        run = await repeated(lambda: self.get_run(name), self._backoff)
        return run.last_sequence <= sequence

    async def _leave(self, name: str) -> None:
        """Cancels a run at once that the gateway would cancel after a while; where that fails it does so by itself."""
        with suppress(CallError):
            request = CancelRunRequest(name=name)
            await self._answer(self._stub.CancelRun(request, timeout=LEAVE_TIMEOUT_S))

    async def _events(self, start: Callable[[], EventStream]) -> AsyncGenerator[Event]:
        call = start()
        try:
            with self._connection.typed_errors():
                async for response in call:
                    self._connection.reached()
                    event = response.event
                    if event.HasField("image_ready") and not event.image_ready.image.data:
                        image = event.image_ready.image
                        # The run's events are still all there.
                        with suppress(ImageLost):
                            image.data = await self.download_image(image.name) if self.loads(image) else b""
                    yield event
        finally:
            call.cancel()


async def no_cancel(name: str) -> None:
    """Others with the request_id may follow the run, too: the gateway cancels it when no client is left."""
