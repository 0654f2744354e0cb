"""A servicer on the harness: statuses and their details, health, reflection, a port in use, a stop that drains."""

import asyncio
import os
import signal

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from services.errors import InvalidRequest, QueueFull
from services.serving.channels import open_channel
from services.serving.server import AddressInUse, StopSignal, serving, stop_signal
from tests.waiting import underway
from triptych.v1 import generator_pb2, generator_pb2_grpc, stage_pb2

SERVICE = "triptych.v1.GeneratorService"


class Scripted(generator_pb2_grpc.GeneratorServiceServicer):
    def __init__(self):
        self.may_end = asyncio.Event()

    async def Generate(self, request, context):
        if request.prompt == "":
            raise InvalidRequest("prompt", "must not be empty")
        if request.prompt == "busy":
            raise QueueFull("full", retry_after_s=2.5)
        if request.prompt == "bug":
            raise KeyError("secret")
        yield generator_pb2.GenerateResponse(event=stage_pb2.StageEvent())
        await self.may_end.wait()
        yield generator_pb2.GenerateResponse(event=stage_pb2.StageEvent())

    async def GetModel(self, request, context):
        raise KeyError("secret")


def serving_scripted(servicer, **options):
    return serving(
        lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server),
        services=[SERVICE],
        **{"grace_s": 5.0, **options},
    )


@pytest.fixture
async def channel():
    async with serving_scripted(Scripted(), grace_s=0) as running, open_channel(running.address) as channel:
        await running.set_serving(True)
        yield channel


async def refused(channel, prompt):
    call = generator_pb2_grpc.GeneratorServiceStub(channel).Generate(
        generator_pb2.GenerateRequest(prompt=prompt)
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    return raised.value


def details(error, message_type):
    status = rpc_status.from_call(_SyncView(error))
    packed = [detail for detail in status.details if detail.Is(message_type.DESCRIPTOR)]
    return [message_type.FromString(detail.value) for detail in packed]


class _SyncView:
    """What grpc_status reads from a call, which the asyncio errors offer under the same names."""

    def __init__(self, error):
        self.code, self.details, self.trailing_metadata = (
            error.code,
            error.details,
            error.trailing_metadata,
        )


async def test_a_refused_field_is_named_in_the_details(channel):
    error = await refused(channel, "")
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    [violations] = details(error, error_details_pb2.BadRequest)
    assert violations.field_violations[0].field == "prompt"
    assert details(error, error_details_pb2.RetryInfo) == []


async def test_a_full_queue_states_when_to_come_back(channel):
    error = await refused(channel, "busy")
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    [info] = details(error, error_details_pb2.ErrorInfo)
    [retry] = details(error, error_details_pb2.RetryInfo)
    assert (info.domain, info.reason) == ("triptych", "QUEUE_FULL")
    assert retry.retry_delay.ToMilliseconds() == 2500


async def test_a_bug_in_a_stream_is_internal_and_does_not_leak(channel):
    error = await refused(channel, "bug")
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()


async def test_a_bug_in_a_unary_call_is_internal_and_does_not_leak(channel):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await generator_pb2_grpc.GeneratorServiceStub(channel).GetModel(
            generator_pb2.GeneratorServiceGetModelRequest()
        )
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in raised.value.details()


async def test_a_message_that_does_not_parse_is_an_invalid_request(channel):
    call = channel.unary_stream(f"/{SERVICE}/Generate")(b"\x0a\x02\xff\xfe")  # a prompt that is no UTF-8
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    [info] = details(raised.value, error_details_pb2.ErrorInfo)
    assert info.reason == "INVALID_ARGUMENT"


async def test_a_service_is_not_serving_until_it_reports_it():
    async with serving_scripted(Scripted()) as running, open_channel(running.address) as channel:
        checks = health_pb2_grpc.HealthStub(channel)
        before = await checks.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        await running.set_serving(True)
        after = await checks.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    states = health_pb2.HealthCheckResponse
    assert (before.status, after.status) == (states.NOT_SERVING, states.SERVING)


async def test_reflection_lists_the_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]))
    reply = await call.read()
    names = {service.name for service in reply.list_services_response.service}
    assert names >= {SERVICE, "grpc.health.v1.Health"}


async def test_a_port_in_use_is_said():
    async with serving_scripted(Scripted()) as running:
        with pytest.raises(AddressInUse, match="choose another --port"):
            async with serving_scripted(Scripted(), port=running.port):
                pytest.fail("two servers listen on one port")


async def test_a_running_call_finishes_while_the_server_stops():
    servicer = Scripted()
    async with open_channel_to(servicer) as (channel, stop_server):
        call = generator_pb2_grpc.GeneratorServiceStub(channel).Generate(
            generator_pb2.GenerateRequest(prompt="x")
        )
        await call.read()
        stopping = await underway(stop_server())
        servicer.may_end.set()
        assert await call.read() is not grpc.aio.EOF
        assert await call.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 120)


async def test_an_open_health_watch_does_not_hold_up_the_stop():
    async with open_channel_to(Scripted(), grace_s=600) as (channel, stop_server):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        await watch.read()
        await asyncio.wait_for(stop_server(), 120)


async def test_sigterm_sets_the_stop_event():
    async with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 120)


async def test_a_stop_cancels_what_is_still_starting():
    async with stop_signal(grace_s=600) as stop:
        stop.starting = asyncio.current_task()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(120)
        pytest.fail("it was not cancelled")
    assert stop.left_s() == 0


async def test_the_grace_begins_with_the_first_signal():
    async with stop_signal(grace_s=600) as stop:
        assert stop.left_s() == 600
        stop.set()
        left_s = stop.left_s()
        stop.set()
        assert stop.left_s() <= left_s < 600


async def test_calls_have_what_is_left_of_the_grace():
    stop = StopSignal(0)
    async with open_channel_to(Scripted(), grace_s=stop.left_s) as (channel, stop_server):
        call = generator_pb2_grpc.GeneratorServiceStub(channel).Generate(
            generator_pb2.GenerateRequest(prompt="a red house")
        )
        await call.read()
        stop.set()
        await asyncio.wait_for(stop_server(), 120)
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class open_channel_to:  # noqa: N801 - reads as a function, and the stop in the middle wants the two halves apart
    def __init__(self, servicer, **options):
        self._server = serving_scripted(servicer, **options)

    async def __aenter__(self):
        running = await self._server.__aenter__()
        self._channel = open_channel(running.address)
        return self._channel, lambda: self._server.__aexit__(None, None, None)

    async def __aexit__(self, *_):
        await self._channel.close()
