"""The RPCs of PipelineService beside the running of a run."""

import hashlib
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits
from tests.gateway.fake_stage import pipeline
from tests.gateway.run_fixtures import ALL, collect, finished, ready, run_finished, spec
from triptych.client import Busy, CallError, InvalidRequest, NotFound, RequestIdReused
from triptych.v1.pipeline_pb2 import (
    CreateRunRequest,
    DownloadImageRequest,
    RunSpec,
    RunState,
    StreamRunRequest,
    WatchRunRequest,
)


async def test_the_same_request_id_gives_the_same_run(gateway):
    first = await collect(gateway, spec(), request_id="once")
    second = await collect(gateway, spec(), request_id="once")
    assert second[0].state.run == first[0].state.run
    assert second[-1] == first[-1]
    assert len(gateway.generator.requests) == 2


async def test_an_unset_seed_is_not_drawn_again_for_the_same_request_id(gateway):
    asked = RunSpec(prompt="x", generate={"count": 1})
    seeds = [(await collect(gateway, asked, request_id="once"))[0].state.spec.seed for _ in range(2)]
    assert seeds[0] == seeds[1]


async def test_the_same_request_id_with_another_spec_is_refused(gateway):
    await collect(gateway, spec(), request_id="once")
    with pytest.raises(RequestIdReused, match="request_id 'once' made runs/"):
        await collect(gateway, spec(upscale=None), request_id="once")


async def test_a_stream_that_is_asked_for_again_can_begin_after_what_has_come(gateway):
    events = await collect(gateway, spec(), request_id="once")
    seen = events[4].sequence
    request = StreamRunRequest(request_id="once", spec=spec(), after_sequence=seen)
    rest = [response.event async for response in gateway.stub.StreamRun(request)]
    assert rest[0].sequence > seen
    assert rest[-1] == events[-1]


async def test_a_stream_from_a_negative_number_begins_no_run(gateway):
    with pytest.raises(grpc.aio.AioRpcError, match="after_sequence: must not be negative"):
        _ = [one async for one in gateway.stub.StreamRun(StreamRunRequest(spec=spec(), after_sequence=-1))]
    assert await gateway.facade.list_runs(ALL) == ([], "")


async def test_without_a_request_id_every_call_makes_a_run(gateway):
    names = set()
    for _ in range(2):
        call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(refine=None, upscale=None)))
        names.add([response.event async for response in call][0].state.run)
    assert len(names) == 2


async def test_a_request_id_has_a_limit(gateway):
    with pytest.raises(InvalidRequest) as raised:
        await collect(gateway, spec(), request_id="x" * 129)
    assert raised.value.violations == {"request_id": "must have at most 128 characters, got 129"}


async def test_a_created_run_goes_on_by_itself_and_can_be_watched(gateway):
    answer = await gateway.stub.CreateRun(CreateRunRequest(request_id="once", spec=spec()))
    assert answer.run.state in (RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_RUNNING)
    events = [event async for event in gateway.client.watch_run(answer.run.name)]
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    again = await gateway.stub.CreateRun(CreateRunRequest(request_id="once", spec=spec()))
    assert (again.run.name, again.run.state) == (answer.run.name, RunState.RUN_STATE_SUCCEEDED)


async def test_a_watcher_can_begin_after_what_it_has_seen(gateway):
    events = await collect(gateway, spec())
    name, seen = events[0].state.run, events[4].sequence
    rest = [event async for event in gateway.client.watch_run(name, after_sequence=seen)]
    # A preview that the first reader saw may be gone; nothing else is.
    kept = [event for event in events if event.sequence > seen and not event.HasField("preview")]
    assert [event for event in rest if not event.HasField("preview")] == kept


async def test_a_watcher_who_goes_away_leaves_the_run_alone(gateway):
    gateway.generator.close_gates(0)
    answer = await gateway.stub.CreateRun(CreateRunRequest(spec=spec()))
    watcher = gateway.stub.WatchRun(WatchRunRequest(name=answer.run.name))
    await watcher.read()
    watcher.cancel()
    gateway.generator.gates[0].set()
    assert (await run_finished(gateway, answer.run.name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_watching_from_a_negative_number_is_refused(gateway):
    name = (await collect(gateway, spec()))[0].state.run
    with pytest.raises(InvalidRequest, match="after_sequence: must not be negative"):
        [_ async for _ in gateway.client.watch_run(name, after_sequence=-1)]


async def test_a_run_has_its_state(gateway):
    events = await collect(gateway, spec())
    run = await gateway.client.get_run(events[0].state.run)
    assert run.state == RunState.RUN_STATE_SUCCEEDED
    assert run.last_sequence == events[-1].sequence
    assert len(run.images) == len(run.timings) == 5
    assert not any(image.data for image in run.images)
    assert run.create_time.ToNanoseconds() <= run.start_time.ToNanoseconds() <= run.end_time.ToNanoseconds()


async def test_a_run_that_is_not_there_is_not_found(gateway):
    with pytest.raises(NotFound, match="there is no run 'runs/none' here"):
        await gateway.client.get_run("runs/none")


async def test_an_image_downloads_with_its_hash(gateway):
    image = ready(await collect(gateway, spec()))[-1]
    data = await gateway.client.download_image(image.name)
    assert (data, hashlib.sha256(data).hexdigest()) == (image.data, image.sha256)


async def test_a_large_picture_is_downloaded_in_chunks(gateway):
    gateway.upscaler.picture_bytes = 5 * 2**20
    call = gateway.stub.StreamRun(StreamRunRequest(spec=spec()))
    reported = [
        response.event.image_ready.image async for response in call if response.event.HasField("image_ready")
    ]
    large = reported[-1]
    assert large.data == b""
    call = gateway.stub.DownloadImage(DownloadImageRequest(name=large.name))
    parts = [part async for part in call]
    assert len(parts) == 6
    assert parts[0].total_bytes == sum(len(part.chunk) for part in parts)
    assert hashlib.sha256(b"".join(part.chunk for part in parts)).hexdigest() == large.sha256


async def test_a_preview_too_large_for_a_message_is_left_out(gateway):
    gateway.generator.preview_bytes = 4 * 2**20
    call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(refine=None, upscale=None)))
    kinds = [response.event.WhichOneof("kind") async for response in call]
    assert (kinds.count("preview"), kinds[-1]) == (0, "finished")


async def test_the_client_fetches_large_pictures_by_itself(gateway):
    gateway.upscaler.picture_bytes = 5 * 2**20
    image = ready(await collect(gateway, spec()))[-1]
    assert hashlib.sha256(image.data).hexdigest() == image.sha256


async def test_a_download_can_begin_in_the_middle(gateway):
    image = ready(await collect(gateway, spec()))[0]
    call = gateway.stub.DownloadImage(DownloadImageRequest(name=image.name, offset=10))
    assert b"".join([part.chunk async for part in call]) == image.data[10:]


async def test_an_image_that_is_not_there_is_not_found(gateway):
    name = (await collect(gateway, spec()))[0].state.run
    with pytest.raises(NotFound, match="has no finished image"):
        await gateway.client.download_image(f"{name}/images/refine-63")


async def test_models_are_listed_with_their_workers():
    async with pipeline(generators=2) as gateway:
        listed = await gateway.client.list_models()
    assert [(one.model.name, one.model.stage, one.num_workers) for one in listed] == [
        ("scripted", 1, 2),
        ("scripted", 2, 1),
        ("scripted", 3, 1),
    ]


async def test_models_are_listed_of_the_stages_that_are_there():
    async with pipeline(upscalers=0) as gateway:
        await gateway.refiner.kill()
        await gateway.notice()
        assert {one.model.stage for one in await gateway.client.list_models()} == {1}


async def test_more_runs_than_the_gateway_holds_are_refused_with_a_retry():
    async with pipeline(bounds=RunLimits(room=AdmissionLimits(max_running=1, max_queued=0))) as gateway:
        gateway.generator.close_gates(0)
        await gateway.stub.CreateRun(CreateRunRequest(spec=spec()))
        with pytest.raises(Busy, match="1 runs are under way") as raised:
            await collect(gateway, spec())
        assert raised.value.retry_after_s == 5.0


async def test_health_knows_the_service_by_name(gateway):
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        checks = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="triptych.v1.PipelineService")
        assert (await checks.Check(request)).status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_service(gateway):
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        await call.done_writing()
    assert "triptych.v1.PipelineService" in {service.name for service in listed}


async def test_a_finished_run_that_failed_is_watched_to_its_end(gateway):
    gateway.generator.errors[0] = KeyError("x")
    asked = spec(generate={"count": 1}, refine=None, upscale=None)
    with pytest.raises(CallError):
        await collect(gateway, asked, request_id="once")
    name = (await gateway.facade.list_runs(ALL))[0][0].name
    events = [event async for event in gateway.client.watch_run(name)]
    assert finished(events).state == RunState.RUN_STATE_FAILED


def test_the_gateway_imports_no_network():
    script = "import gateway.command, sys; print([m for m in ('jax', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
