"""Both APIs with tokens: every method that reflection reports and every HTTP route, with none, a wrong, and another's."""

from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from starlette.routing import Mount

from gateway.access.authentication import Authentication
from gateway.access.caller import Caller
from gateway.access.token_file import new_token, write_tokens
from gateway.grpc_service import SERVICE
from gateway.http.app import ROUTES
from gateway.http.context import RequestContext
from gateway.http.server import serving_http
from tests.gateway.fake_stage import pipeline
from tests.gateway.run_fixtures import ready, spec
from triptych.client import Client
from triptych.v1 import pipeline_pb2

# What anybody may ask: the page itself, which holds nothing of anybody's.
OPEN = {"/health", "/", "/web", "/openapi.json"}
CALLERS = (Caller("alice"), Caller("bob"), Caller("operator", sees_all=True))


@dataclass
class Doors:
    """A gateway with a finished run of Alice's, and the tokens of Alice, of Bob, and of an operator who sees all."""

    address: str
    url: str
    tokens: dict[str, str]
    image: pipeline_pb2.Image

    @property
    def run(self):
        return self.image.name.partition("/images/")[0]


@asynccontextmanager
async def opened(folder):
    made = {caller.name: new_token(caller) for caller in CALLERS}
    write_tokens(folder / "tokens.json", [entry for _, entry in made.values()])
    tokens = {name: token for name, (token, _) in made.items()}
    async with pipeline(tokens=folder / "tokens.json") as gateway:
        api = RequestContext(gateway.facade, Authentication(folder / "tokens.json"))
        async with (
            serving_http(api, grace_s=1) as web,
            Client(gateway.address, token=tokens["alice"]) as alice,
        ):
            events = [event async for event in alice.stream_run(spec(), request_id="once")]
            yield Doors(gateway.address, f"http://{web.address}", tokens, ready(events)[0])


@pytest.fixture
async def doors(tmp_path):
    async with opened(tmp_path) as running:
        yield running


async def methods_by_reflection(address):
    """The descriptors of all methods of all services that the server reports, but for health and reflection."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask(**question):
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]))
            return await call.read()

        listed = (await ask(list_services="")).list_services_response.service
        pool, found = descriptor_pool.Default(), []
        for service in (one.name for one in listed if not one.name.startswith("grpc.")):
            answers = (await ask(file_containing_symbol=service)).file_descriptor_response
            files = map(descriptor_pb2.FileDescriptorProto.FromString, answers.file_descriptor_proto)
            reported = {
                method.name
                for file in files
                for one in file.service
                for method in one.method
                if f"{file.package}.{one.name}" == service
            }
            descriptor = pool.FindServiceByName(service)
            assert {method.name for method in descriptor.methods} == reported
            found += descriptor.methods
        return found


async def status(doors, method, request, token=None):
    """How a call ends, by the name of its status."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    path = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc.aio.insecure_channel(doors.address) as channel:
        try:
            if method.server_streaming:
                stream = channel.unary_stream(path, type(request).SerializeToString)(
                    request, metadata=metadata
                )
                async for _ in stream:
                    pass
            else:
                await channel.unary_unary(path, type(request).SerializeToString)(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


def request_of(method, doors):
    """The method's request, about Alice's run or picture where it is about one."""
    request = message_factory.GetMessageClass(method.input_type)()
    if "name" in method.input_type.fields_by_name:
        request.name = doors.image.name if method.name == "DownloadImage" else doors.run
    return request


async def test_reflection_reports_every_method_of_the_contract(doors):
    methods = await methods_by_reflection(doors.address)
    contract = pipeline_pb2.DESCRIPTOR.services_by_name["PipelineService"].methods
    assert [method.full_name for method in methods] == [method.full_name for method in contract]


async def test_no_method_is_served_without_a_token(doors):
    methods = await methods_by_reflection(doors.address)
    ends = {method.name: await status(doors, method, request_of(method, doors)) for method in methods}
    assert ends == dict.fromkeys(ends, "UNAUTHENTICATED")


async def test_no_method_is_served_with_a_wrong_token(doors):
    methods = await methods_by_reflection(doors.address)
    ends = {
        method.name: await status(doors, method, request_of(method, doors), "triptych_wrong")
        for method in methods
    }
    assert ends == dict.fromkeys(ends, "PERMISSION_DENIED")


async def test_no_method_finds_the_run_of_another_caller(doors):
    methods = [
        method
        for method in await methods_by_reflection(doors.address)
        if "name" in method.input_type.fields_by_name
    ]
    ends = {
        method.name: await status(doors, method, request_of(method, doors), doors.tokens["bob"])
        for method in methods
    }
    assert ends == dict.fromkeys(
        ["WatchRun", "SelectImages", "CancelRun", "GetRun", "MoveRun", "DeleteRun", "DownloadImage"],
        "NOT_FOUND",
    )


async def test_a_picture_of_another_caller_cannot_be_cancelled_or_downloaded_by_way_of_ones_own_run(doors):
    async with Client(doors.address, token=doors.tokens["bob"]) as bob:
        events = [event async for event in bob.stream_run(spec(), request_id="once")]
        own = events[0].state.run
    assert own != doors.run
    method = pipeline_pb2.DESCRIPTOR.services_by_name["PipelineService"].methods_by_name["CancelRun"]
    request = pipeline_pb2.CancelRunRequest(name=own, images=[doors.image.name])
    assert await status(doors, method, request, doors.tokens["bob"]) in ("NOT_FOUND", "INVALID_ARGUMENT")


@pytest.mark.parametrize(("caller", "num_runs"), [("alice", 1), ("bob", 0), ("operator", 1)])
async def test_runs_are_listed_to_callers_who_may_see_them(doors, caller, num_runs):
    async with Client(doors.address, token=doors.tokens[caller]) as client:
        assert len([run async for run in client.list_runs()]) == num_runs


async def test_an_operator_finds_the_runs_of_all(doors):
    async with Client(doors.address, token=doors.tokens["operator"]) as operator:
        assert (await operator.get_run(doors.run)).name == doors.run


async def test_the_same_request_id_of_two_callers_makes_two_runs(doors):
    async with Client(doors.address, token=doors.tokens["bob"]) as bob:
        events = [event async for event in bob.stream_run(spec(), request_id="once")]
    assert events[0].state.run != doors.run


async def test_health_asks_for_no_token(doors):
    async with grpc.aio.insecure_channel(doors.address) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def calls_of(doors):
    """(method, path, about Alice's run?) of every HTTP route, its parameters those of Alice's run and picture."""
    run, _, image = doors.image.name.removeprefix("runs/").partition("/images/")
    values = {
        "{id}": run,
        "{image}": image,
        "{sha256}": doors.image.sha256,
        "{model:path}": "scripted",
        "{key}": "0",
        "{file}": "0",
    }
    for route in ROUTES:
        path = route.path or "/"
        if path in OPEN:
            continue
        assert not isinstance(route, Mount), f"{path} answers to what this test does not know"
        for name, value in values.items():
            path = path.replace(name, value)
        assert "{" not in path
        for method in sorted(route.methods):
            yield method, path, run in path or doors.image.sha256 in path


async def answers(doors, token, *, private_only=False):
    """The statuses of all calls by (method, path)."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=doors.url, headers=headers, timeout=120) as http:
        return {
            (method, path): (await http.request(method, path, json={})).status_code
            for method, path, is_private in calls_of(doors)
            if is_private or not private_only
        }


async def test_no_route_is_served_without_a_token(doors):
    ends = await answers(doors, None)
    assert len(ends) >= 18
    assert ends == dict.fromkeys(ends, 401)


async def test_no_route_is_served_with_a_wrong_token(doors):
    ends = await answers(doors, "triptych_wrong")
    # OpenAI's API answers 401 to a wrong key as to none, and its clients rely on that.
    assert ends == {(method, path): 401 if path.startswith("/v1/") else 403 for method, path in ends}


async def test_no_route_finds_the_run_of_another_caller(doors):
    ends = await answers(doors, doors.tokens["bob"], private_only=True)
    assert len(ends) >= 8
    assert ends == dict.fromkeys(ends, 404)


async def test_a_route_finds_what_the_caller_owns(doors):
    async with httpx.AsyncClient(
        base_url=doors.url, headers={"authorization": f"Bearer {doors.tokens['alice']}"}
    ) as http:
        assert (await http.get(f"/images/{doors.image.sha256}")).status_code == 200
        assert (await http.get(f"/{doors.run}")).status_code == 200


async def test_the_page_asks_for_no_token(doors):
    async with httpx.AsyncClient(base_url=doors.url) as http:
        assert (await http.get("/")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/images/..%2f..%2ftokens.json", "/web/..%2f..%2fcallers.py", "/web/%2e%2e/callers.py"]
)
async def test_no_path_leads_out_of_what_is_served(doors, path):
    async with httpx.AsyncClient(
        base_url=doors.url, headers={"authorization": f"Bearer {doors.tokens['operator']}"}
    ) as http:
        assert (await http.get(path)).status_code == 404
