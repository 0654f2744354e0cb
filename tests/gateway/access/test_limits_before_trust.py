"""A caller without a token has nothing read; one with a token no more than its share. Both APIs, over real connections."""

import asyncio
import socket
from collections import Counter
from contextlib import suppress

import grpc
import httpx
import pytest

from gateway.access.caller import Caller
from gateway.access.token_file import new_token, write_tokens
from gateway.http.middleware import connections
from services.serving.limits import call_gate
from services.serving.limits.connection_guard import close, connections_to
from tests.gateway.fake_stage import pipeline
from tests.gateway.http.conftest import web_gateway
from triptych.v1.pipeline_pb2 import CreateRunRequest, CreateRunResponse, GetRunRequest

SERVICE = "/triptych.v1.PipelineService"


@pytest.fixture
def tokens(tmp_path):
    token, entry = new_token(Caller("alice"))
    write_tokens(tmp_path / "tokens.json", [entry])
    return tmp_path / "tokens.json", token


async def endless(started: asyncio.Event):
    """A request that never ends: a server that reads it before it checks the token waits for ever."""
    started.set()
    await asyncio.Event().wait()
    yield b""


async def test_grpc_refuses_before_the_request_is_there(tokens):
    async with pipeline(tokens=tokens[0]) as gateway, grpc.aio.insecure_channel(gateway.address) as channel:
        for method in ("CreateRun", "StreamRun", "GetRun", "WatchRun"):
            call = channel.stream_stream(f"{SERVICE}/{method}")(endless(asyncio.Event()), timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_connection_with_many_refused_calls_is_closed_and_others_are_served(tokens, monkeypatch):
    path, token = tokens
    monkeypatch.setattr(call_gate, "MAX_REFUSALS", 5)
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        pipeline(tokens=path) as gateway,
        grpc.aio.insecure_channel(gateway.address, options=own) as channel,
        grpc.aio.insecure_channel(gateway.address, options=own) as other,
    ):
        call = channel.unary_unary(f"{SERVICE}/ListRuns")
        codes = []
        while channel.get_state() is not grpc.ChannelConnectivity.IDLE or not codes:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(b"", timeout=20)
            codes.append(raised.value.code())
            if len(codes) == 5:
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        assert codes[:4] == [grpc.StatusCode.UNAUTHENTICATED] * 4
        assert len(codes) == 5
        metadata = (("authorization", f"Bearer {token}"),)
        await other.unary_unary(f"{SERVICE}/ListRuns")(b"", metadata=metadata, timeout=20)


@pytest.mark.parametrize("path", ["/runs", "/v1/images/generations", "/v1/images/edits", "/dalle"])
async def test_http_refuses_before_the_body_is_there(tokens, path):
    async with web_gateway(tokens=tokens[0]) as web:
        host, port = web.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 30000000\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()


async def test_a_request_of_many_fields_is_refused_by_both(tokens):
    path, token = tokens
    junk = b"\x12\x80\x80\x20" + b"\x1a\x00" * 2**18
    async with web_gateway(tokens=path, token=token) as web:
        async with grpc.aio.insecure_channel(web.gateway.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(f"{SERVICE}/CreateRun")(
                    junk, metadata=(("authorization", f"Bearer {token}"),)
                )
        answer = await web.http.post(
            "/runs", content=b"[" + b"[]," * 100_000 + b"[]]", headers={"content-type": "application/json"}
        )
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "fields and values" in raised.value.details()
    assert answer.status_code == 400
    assert "values" in answer.json()["error"]["message"]


async def test_a_small_method_takes_no_large_request(tokens):
    path, token = tokens
    async with pipeline(tokens=path) as gateway, grpc.aio.insecure_channel(gateway.address) as channel:
        call = channel.unary_unary(f"{SERVICE}/GetRun", GetRunRequest.SerializeToString)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(GetRunRequest(name="x" * 2**21), metadata=(("authorization", f"Bearer {token}"),))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 1048576 bytes" in raised.value.details()


async def test_health_takes_no_large_request():
    async with pipeline() as gateway, grpc.aio.insecure_channel(gateway.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\x80\x40" + b"a" * 2**13)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_large_requests_of_one_caller_do_not_hold_up_another(tokens, tmp_path):
    path, _ = tokens
    made = {name: new_token(Caller(name)) for name in ("alice", "mallory")}
    write_tokens(path, [entry for _, entry in made.values()])
    large = CreateRunRequest(request_id="r")
    large.spec.prompt = "x" * (20 * 2**20)
    started = [asyncio.Event() for _ in range(6)]
    async with pipeline(tokens=path) as gateway, grpc.aio.insecure_channel(gateway.address) as channel:

        def metadata(name):
            return (("authorization", f"Bearer {made[name][0]}"),)

        # More than a share of requests that are being read and never end.
        slow = [
            channel.stream_stream(f"{SERVICE}/CreateRun")(endless(one), metadata=metadata("mallory"))
            for one in started
        ]
        await asyncio.gather(*[one.wait() for one in started])
        create = channel.unary_unary(
            f"{SERVICE}/CreateRun", CreateRunRequest.SerializeToString, CreateRunResponse.FromString
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await create(large, metadata=metadata("alice"))
        for call in slow:
            call.cancel()
    assert "spec.prompt" in raised.value.details()


@pytest.mark.parametrize(("size", "count", "is_served"), [(1, 20_000, False), (100, 20_000, True)])
async def test_a_body_of_tiny_chunks_ends_its_connection(tokens, size, count, is_served):
    """Each takes a turn of the event loop; larger ones are as many as the size of a body allows."""
    path, token = tokens
    async with web_gateway(tokens=path) as web:
        host, port = web.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /runs HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
        writer.write(f"{head}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        with suppress(ConnectionError):
            writer.write((f"{size:x}\r\n{'x' * size}\r\n" * count + "0\r\n\r\n").encode())
            line = b""
            line = await reader.readline()
        writer.close()
    assert (b"400" in line) == is_served


async def test_silent_connections_make_room_for_those_that_ask(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS_PER_ADDRESS", 20)
    async with web_gateway() as web:
        host, port = web.url.removeprefix("http://").split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
        answers = Counter()
        for _ in range(5):
            async with httpx.AsyncClient(base_url=web.url) as http:
                answers[(await http.get("/runs")).status_code] += 1
        closed = await asyncio.gather(*[reader.read() for reader, _ in silent[:40]])
        for _, writer in silent:
            writer.close()
    assert answers == {200: 5}
    assert closed == [b""] * 40


@pytest.mark.parametrize("sent", [b"", b"GET /runs HTTP/1.1\r\nhost: x\r\n", b"GE"])
async def test_a_request_that_never_comes_is_not_waited_for(monkeypatch, sent):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr("gateway.http.server.KEEP_ALIVE_S", 0)
    async with web_gateway() as web:
        host, port = web.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        with_error = await asyncio.gather(reader.read(), return_exceptions=True)
        writer.close()
    assert isinstance(with_error[0], ConnectionResetError) or with_error[0] in (b"",)


def test_connections_of_this_process_are_found_and_closed():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        server.accept()[0] as accepted,
    ):
        ours.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        found = list(connections_to([server.getsockname()[1]]))
        assert [(one.peer, one.num_bytes) for one in found] == [(ours.getsockname(), 5)]
        close(found[0])
        assert ours.recv(1) == b""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"spec": {"prompt": "x" * 2**21}}, "spec.prompt"),
        (
            {"spec": {"refine": {"settings": {"negative_prompt": "x" * 2**21}}}},
            "spec.refine.settings.negative_prompt",
        ),
        ({"request_id": "x" * 2**21}, "request_id"),
    ],
)
async def test_a_text_that_no_field_can_hold_is_refused_by_its_field(body, field):
    async with web_gateway() as web:
        answer = await web.http.post("/runs", json=body)
    assert answer.status_code == 400
    assert list(answer.json()["error"]["violations"]) == [field]


@pytest.mark.parametrize("depth", [100, 400, 900, 5_000])
async def test_a_body_that_is_nested_deeply_is_no_bug(depth):
    async with web_gateway() as web:
        content = b'{"spec": ' * depth + b"1" + b"}" * depth
        answer = await web.http.post("/runs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
