"""PipelineService: the gRPC API of the gateway, in terms of the pipeline's methods."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing

from gateway.access.authentication import current_caller
from gateway.pipeline import Pipeline, check_after_sequence
from services.errors import InvalidRequest
from services.serving.limits.call_gate import Context
from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    CancelRunResponse,
    CreateRunRequest,
    CreateRunResponse,
    DeleteRunRequest,
    DeleteRunResponse,
    DownloadImageRequest,
    DownloadImageResponse,
    Event,
    GetRunRequest,
    GetRunResponse,
    ListModelsRequest,
    ListModelsResponse,
    ListRunsRequest,
    ListRunsResponse,
    MoveRunRequest,
    MoveRunResponse,
    ReadPromptRequest,
    ReadPromptResponse,
    RunState,
    SelectImagesRequest,
    SelectImagesResponse,
    StreamRunRequest,
    StreamRunResponse,
    WatchRunRequest,
    WatchRunResponse,
)
from triptych.v1.pipeline_pb2_grpc import PipelineServiceServicer

SERVICE = "triptych.v1.PipelineService"
CHUNK_BYTES = 2**20


class PipelineService(PipelineServiceServicer):
    """The RPCs, in terms of the pipeline's methods."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def CreateRun(self, request: CreateRunRequest, context: Context) -> CreateRunResponse:
        run = await self._pipeline.create_run(
            request.request_id,
            request.spec,
            current_caller(),
            webhook_url=request.webhook_url,
            in_turn=request.in_turn,
        )
        return CreateRunResponse(run=run)

    async def StreamRun(
        self, request: StreamRunRequest, context: Context
    ) -> AsyncIterator[StreamRunResponse]:
        caller, after_sequence = current_caller(), check_after_sequence(request.after_sequence)
        name = await self._pipeline.begin_run(
            request.request_id,
            request.spec,
            caller,
            detach=request.detach,
            timeout_s=context.time_remaining(),
            webhook_url=request.webhook_url,
            in_turn=request.in_turn,
        )
        self._attach(name, context)
        last = Event()
        async for last in self._pipeline.watch_run(name, caller, after_sequence=after_sequence):
            yield StreamRunResponse(event=last)
        # A caller that has seen the end already gets the final state again.
        has_failed = last.finished.state == RunState.RUN_STATE_FAILED
        is_over = last.HasField("finished") and not has_failed
        if not is_over and (error := await self._pipeline.run_error(name, caller)):
            raise error

    async def WatchRun(self, request: WatchRunRequest, context: Context) -> AsyncIterator[WatchRunResponse]:
        name, caller = request.name, current_caller()
        await self._pipeline.require_access(name, caller)
        self._attach(name, context)
        async for event in self._pipeline.watch_run(name, caller, after_sequence=request.after_sequence):
            yield WatchRunResponse(event=event)

    async def SelectImages(self, request: SelectImagesRequest, context: Context) -> SelectImagesResponse:
        run = await self._pipeline.select_images(
            request.request_id, request.name, request.selections, current_caller()
        )
        return SelectImagesResponse(run=run)

    async def MoveRun(self, request: MoveRunRequest, context: Context) -> MoveRunResponse:
        return MoveRunResponse(run=await self._pipeline.move_run(request, current_caller()))

    async def CancelRun(self, request: CancelRunRequest, context: Context) -> CancelRunResponse:
        run = await self._pipeline.cancel_run(request.name, current_caller(), request.images)
        return CancelRunResponse(run=run)

    async def GetRun(self, request: GetRunRequest, context: Context) -> GetRunResponse:
        return GetRunResponse(run=await self._pipeline.get_run(request.name, current_caller()))

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        runs, next_page_token = await self._pipeline.list_runs(
            current_caller(),
            page_size=request.page_size,
            page_token=request.page_token,
            states=request.states,
        )
        return ListRunsResponse(runs=runs, next_page_token=next_page_token)

    async def DeleteRun(self, request: DeleteRunRequest, context: Context) -> DeleteRunResponse:
        await self._pipeline.delete_run(request.name, current_caller())
        return DeleteRunResponse()

    async def DownloadImage(
        self, request: DownloadImageRequest, context: Context
    ) -> AsyncIterator[DownloadImageResponse]:
        image, total_bytes = await self._pipeline.open_image(request.name, current_caller())
        if not 0 <= request.offset <= total_bytes:
            raise InvalidRequest("offset", f"must be 0 to {total_bytes}, got {request.offset}")
        response = DownloadImageResponse(
            total_bytes=total_bytes, sha256=image.sha256, mime_type=image.mime_type
        )
        async with aclosing(self._pipeline.read_parts(image, request.offset, total_bytes)) as parts:
            async for part in parts:
                for start in range(0, max(1, len(part)), CHUNK_BYTES):
                    response.chunk = part[start : start + CHUNK_BYTES]
                    yield response
                    response = DownloadImageResponse()
        # Size and hash are sent for an empty file, too.
        if response.total_bytes:
            yield response

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        return ListModelsResponse(models=await self._pipeline.list_models())

    async def ReadPrompt(self, request: ReadPromptRequest, context: Context) -> ReadPromptResponse:
        return ReadPromptResponse(reading=await self._pipeline.read_prompt(request.prompt, request.model))

    def _attach(self, name: str, context: Context) -> None:
        """Counts the caller as a client of the run until the call ends."""
        attached = ExitStack()
        attached.enter_context(self._pipeline.attach(name))
        # Unlike a `finally` in a stream, the callback is called at once, also while a slow reader holds that up.
        context.add_done_callback(lambda _: attached.close())  # type: ignore[arg-type]  # typed as something else in the stubs
