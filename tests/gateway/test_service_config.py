"""The published service config: a plain gRPC channel that has it retries what is safe, and nothing else."""

import json
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from tests.gateway.run_fixtures import ALL, run_finished, spec
from triptych.v1.pipeline_pb2 import (
    DESCRIPTOR,
    CreateRunRequest,
    DeleteRunRequest,
    GetRunRequest,
    SelectImagesRequest,
    StreamRunRequest,
    WatchRunRequest,
)
from triptych.v1.pipeline_pb2_grpc import (
    PipelineServiceServicer,
    PipelineServiceStub,
    add_PipelineServiceServicer_to_server,
)

CONFIG = (Path(__file__).parents[2] / "protos/triptych/v1/service_config.json").read_text()
SKETCHES = {"refine": None, "upscale": None}
# A second attempt finds nothing to delete, or a run that no longer waits, and its answer is another one.
NOT_RETRIED = {"DeleteRun", "MoveRun"}


class LosesAnswers(PipelineServiceServicer):
    """In front of a gateway: has it do what is asked, and loses the first answer to each method."""

    def __init__(self, stub: PipelineServiceStub) -> None:
        self._stub = stub
        self.calls: Counter[str] = Counter()

    async def _unary(self, method, request, context):
        answer = await getattr(self._stub, method)(request)
        self.calls[method] += 1
        if self.calls[method] == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return answer

    async def _stream(self, method, request, context):
        self.calls[method] += 1
        async for answer in getattr(self._stub, method)(request):
            if self.calls[method] == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            yield answer

    async def CreateRun(self, request, context):
        return await self._unary("CreateRun", request, context)

    async def SelectImages(self, request, context):
        return await self._unary("SelectImages", request, context)

    async def GetRun(self, request, context):
        return await self._unary("GetRun", request, context)

    async def DeleteRun(self, request, context):
        return await self._unary("DeleteRun", request, context)

    async def StreamRun(self, request, context):
        async for answer in self._stream("StreamRun", request, context):
            yield answer

    async def WatchRun(self, request, context):
        async for answer in self._stream("WatchRun", request, context):
            yield answer


@asynccontextmanager
async def retrying(gateway):
    """A stub of another program's: a plain channel with the published config and no other option."""
    front = LosesAnswers(gateway.stub)
    server = grpc.aio.server()
    add_PipelineServiceServicer_to_server(front, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.service_config", CONFIG)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield PipelineServiceStub(channel), front
    finally:
        await server.stop(None)


async def test_a_lost_answer_makes_no_second_run(gateway):
    async with retrying(gateway) as (stub, front):
        request = CreateRunRequest(request_id="once", spec=spec(**SKETCHES))
        name = (await stub.CreateRun(request)).run.name
        await run_finished(gateway, name)
        assert (await stub.GetRun(GetRunRequest(name=name))).run.name == name
        chosen = SelectImagesRequest.Selection(image=f"{name}/images/generate-0", refine={"count": 1})
        await stub.SelectImages(SelectImagesRequest(request_id="again", name=name, selections=[chosen]))
        watched = [answer async for answer in stub.WatchRun(WatchRunRequest(name=name))]
        assert watched[-1].event.HasField("finished")
        assert front.calls == {"CreateRun": 2, "GetRun": 2, "SelectImages": 2, "WatchRun": 2}
    runs, _ = await gateway.facade.list_runs(ALL)
    assert [(run.name, len(run.images)) for run in runs] == [(name, 3)]


async def test_a_stream_that_breaks_before_its_first_event_joins_the_run(gateway):
    async with retrying(gateway) as (stub, front):
        request = StreamRunRequest(request_id="once", spec=spec(**SKETCHES))
        events = [answer.event async for answer in stub.StreamRun(request)]
        assert (events[0].sequence, front.calls["StreamRun"]) == (1, 2)
    assert len((await gateway.facade.list_runs(ALL))[0]) == 1


async def test_a_deletion_is_not_repeated(gateway):
    async with retrying(gateway) as (stub, front):
        run = await gateway.facade.create_run("", spec(**SKETCHES), ALL)
        await run_finished(gateway, run.name)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.DeleteRun(DeleteRunRequest(name=run.name))
        assert (raised.value.code(), front.calls["DeleteRun"]) == (grpc.StatusCode.UNAVAILABLE, 1)


def test_it_names_every_method_that_may_be_retried_and_a_deadline_for_none_that_lasts():
    service = DESCRIPTOR.services_by_name["PipelineService"]
    entries = [
        (name["method"], "timeout" in config)
        for config in json.loads(CONFIG)["methodConfig"]
        for name in config["name"]
    ]
    assert sorted(method for method, _ in entries) == sorted(
        {method.name for method in service.methods} - NOT_RETRIED
    )
    assert {method for method, has_deadline in entries if not has_deadline} == {
        method.name for method in service.methods if method.server_streaming
    }
