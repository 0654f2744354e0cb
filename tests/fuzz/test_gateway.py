"""The gateway, over scripted stages, with any message at every method, and any bytes in place of one."""

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, strategies as st

from tests.fuzz.answers import call
from tests.fuzz.strategies import fuzzed, messages
from tests.gateway.fake_stage import gateway_over, pipeline, scripted_stages
from tests.gateway.postgresql import postgresql_server
from tests.gateway.run_fixtures import ready, spec
from triptych.v1 import pipeline_pb2
from triptych.v1.stage_pb2 import INPAINTING_BLENDED

BY_NAME = pipeline_pb2.DESCRIPTOR.services_by_name["PipelineService"].methods_by_name
METHODS = list(BY_NAME.values())
RUN = "runs/0123456789abcdef"
# What gets past the first checks; {run} and {image} are a finished run's and its picture's.
KNOWN = {
    "name": ("{run}", "{image}", RUN, f"{RUN}/images/generate-0", "runs/", "/images/", "runs/../runs"),
    "images": ("{image}", f"{RUN}/images/generate-0"),
    "request_id": ("once", "twice", ""),
    "prompt": ("a red house",),
    "model": ("", "scripted"),
    "page_token": ("", "MSAgeA==", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkgcnVucy94"),
}


@pytest.fixture
async def served():
    """A channel to a gateway, and the names of what it has."""
    async with pipeline() as gateway, grpc.aio.insecure_channel(gateway.address) as channel:
        yield channel, await names_of(gateway)


@pytest.fixture
async def served_by_postgresql(tmp_path):
    """As above, with a journal that is stricter about texts and numbers than SQLite."""
    with postgresql_server() as folder:
        url = f"postgresql://postgres@/postgres?host={folder}"
        async with (
            scripted_stages() as stages,
            gateway_over(stages, tmp_path, journal=url) as gateway,
            grpc.aio.insecure_channel(gateway.address) as channel,
        ):
            yield channel, await names_of(gateway)


async def names_of(gateway):
    gateway.refiner.info.inpainting = INPAINTING_BLENDED
    await gateway.notice()
    image = ready([event async for event in gateway.client.stream_run(spec(), request_id="once")])[0]
    return {"{run}": image.name.partition("/images/")[0], "{image}": image.name}


def named(message, names):
    """The message with the names that are known only when the gateway runs."""
    for field, value in message.ListFields():
        if field.message_type is not None and not field.is_repeated:
            named(value, names)
        elif field.message_type is not None:
            for one in value:
                named(one, names)
        elif field.is_repeated:
            value[:] = [names.get(one, one) if isinstance(one, str) else one for one in value]
        elif isinstance(value, str) and value in names:
            setattr(message, field.name, names[value])
    return message


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@fuzzed(25)
@given(data=st.data())
async def test_any_message_is_answered(served, method, data):
    channel, names = served
    request = named(data.draw(messages(method.input_type, KNOWN)), names)
    for answer in await call(channel, method, request):
        GetMessageClass(method.output_type).FromString(answer)
    await cancel_what_was_begun(channel)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@fuzzed(10)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=20).map(lambda data: b"\x0a\x14" + data.ljust(20, b"\xed")),
    )
)
async def test_any_bytes_are_answered(served, method, data):
    channel, _ = served
    await call(channel, method, data, serializer=bytes)
    await cancel_what_was_begun(channel)


@fuzzed(25)
@given(data=st.data())
async def test_any_message_is_answered_with_a_journal_in_postgresql(served_by_postgresql, data):
    channel, names = served_by_postgresql
    method = data.draw(st.sampled_from(METHODS))
    await call(channel, method, named(data.draw(messages(method.input_type, KNOWN)), names))
    await cancel_what_was_begun(channel)


async def cancel_what_was_begun(channel):
    """Leaves the gateway room for the next example."""
    [listed] = await call(channel, BY_NAME["ListRuns"], pipeline_pb2.ListRunsRequest(page_size=1000))
    for run in pipeline_pb2.ListRunsResponse.FromString(listed).runs:
        if run.state < pipeline_pb2.RUN_STATE_SUCCEEDED:
            await call(channel, BY_NAME["CancelRun"], pipeline_pb2.CancelRunRequest(name=run.name))
