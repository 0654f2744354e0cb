"""The gateway with certificates on both its sides: stages that let only it in, and callers over gRPC and HTTPS."""

import asyncio
import shutil
import ssl
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import httpx
import pytest
from click.testing import CliRunner

from gateway.access.certs_command import certs
from gateway.access.tokens_command import tokens
from gateway.http.context import RequestContext
from gateway.http.server import serving_http
from gateway.stages import GENERATE, UPSCALE
from gateway.workers.discovery import Discovery
from gateway.workers.pool import Pool
from gateway.workers.targets import Target
from services.serving.server import serving
from services.serving.tls import CertificateFiles
from tests.gateway.fake_stage import ScriptedGenerator, ScriptedUpscaler, png
from tests.gateway.run_fixtures import finished
from tests.gateway.test_process import gateway_process
from triptych.client import Client
from triptych.v1 import generator_pb2, generator_pb2_grpc, upscaler_pb2_grpc
from triptych.v1.pipeline_pb2 import RunSpec, RunState


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates") / "made"
    CliRunner().invoke(certs, [str(folder)], catch_exceptions=False)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "certificates")


def files(folder, name):
    return CertificateFiles(folder / f"{name}.crt", folder / f"{name}.key", folder / "ca.crt")


@asynccontextmanager
async def pool_of_one(folder, *, client="gateway-client", is_name=False):
    """A pool of one generator that asks for certificates, and the generator."""
    stage = ScriptedGenerator()
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            serving(
                lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(stage, server),
                services=[GENERATE.service],
                certificate=files(folder, "generator"),
                grace_s=0,
            )
        )
        await running.set_serving(True)
        target = Target("generator" if is_name else "127.0.0.1", running.port, is_name=is_name)
        pool = Pool(Discovery(GENERATE, [target], resolve=_loopback, certificates=files(folder, client)))
        await stack.enter_async_context(pool)
        await pool.refresh()
        yield pool, stage


async def _loopback(name, port):
    return ["127.0.0.1"]


def generate(worker):
    request = generator_pb2.GenerateRequest(prompt="x", images=[{"index": 0, "seed": 7}])
    return generator_pb2_grpc.GeneratorServiceStub(worker.channel).Generate(request)


async def test_a_stage_that_asks_for_certificates_serves_the_gateway(made):
    async with pool_of_one(made) as (pool, _):
        assert len(await pool.healthy_or_raise()) == 1


async def test_a_stage_found_by_name_proves_to_be_that_name(made):
    async with pool_of_one(made, is_name=True) as (pool, _):
        assert len(await pool.healthy_or_raise()) == 1


async def test_a_stage_that_is_another_one_than_its_name_is_given_no_work(made):
    async with pool_of_one(made) as (pool, stage):
        port = pool.healthy[0].address.rpartition(":")[2]
        wrong = Target("refiner", int(port), is_name=True)
        gateway = files(made, "gateway-client")
        async with Discovery(GENERATE, [wrong], resolve=_loopback, certificates=gateway) as mistaken:
            await mistaken.refresh()
            assert mistaken.healthy == []


async def test_a_gateway_with_the_wrong_certificate_has_no_worker(made):
    async with pool_of_one(made, client="refiner") as (pool, _):
        assert pool.healthy == []


async def test_a_renewed_certificate_is_used_without_breaking_a_call_that_runs(folder):
    async with pool_of_one(folder) as (pool, stage):
        stage.close_gates(0)
        async with pool.acquire(stage.info.digest) as before:
            call = generate(before)
            await call.read()
            CliRunner().invoke(certs, [str(folder), "--renew"], catch_exceptions=False)
            await pool.refresh()
            [after] = pool.healthy
            assert after.channel is not before.channel
            stage.gates[0].set()
            events = [response.event async for response in _rest(call)]
        assert events[-1].HasField("timing")
        await pool.refresh()
        with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
            generate(before)


async def _rest(call):
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


def https(folder, name=None):
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    if name:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return httpx.AsyncClient(verify=context)


async def test_http_has_the_certificate_of_the_gateway(made):
    certificate = CertificateFiles(made / "gateway.crt", made / "gateway.key")
    async with (
        serving_http(RequestContext(pipeline=None), certificate=certificate) as web,
        https(made) as client,
    ):
        answer = await client.get(f"https://{web.address}/")
    assert answer.json() == {"success": True}


async def test_http_takes_up_a_changed_certificate(folder):
    async with serving_http(RequestContext(pipeline=None), certificate=files_of_server(folder)) as web:
        where = ("127.0.0.1", web.port)
        before = await asyncio.to_thread(ssl.get_server_certificate, where)
        CliRunner().invoke(certs, [str(folder), "--renew"], catch_exceptions=False)
        after = await asyncio.to_thread(ssl.get_server_certificate, where)
    assert after == (folder / "gateway.crt").read_text() != before


def files_of_server(folder):
    return CertificateFiles(folder / "gateway.crt", folder / "gateway.key")


@pytest.mark.parametrize("renewed", [False, True])
async def test_where_callers_need_certificates_http_refuses_those_without(folder, renewed):
    async with serving_http(RequestContext(pipeline=None), certificate=files(folder, "gateway")) as web:
        if renewed:
            CliRunner().invoke(certs, [str(folder), "--renew"], catch_exceptions=False)
        async with https(folder, "gateway-client") as client:
            assert (await client.get(f"https://{web.address}/")).status_code == 200
        for name in (None, "refiner"):
            async with https(folder, name) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get(f"https://{web.address}/")


async def test_a_gateway_s_process_proves_itself_to_stages_and_callers(made, tmp_path):
    token = CliRunner().invoke(tokens, ["add", "alice", "--tokens", str(tmp_path / "t.json")]).stdout.strip()
    stage = ScriptedUpscaler()
    add = upscaler_pb2_grpc.add_UpscalerServiceServicer_to_server
    async with serving(
        lambda server: add(stage, server),
        services=[UPSCALE.service],
        certificate=files(made, "upscaler"),
        grace_s=0,
    ) as running:
        await running.set_serving(True)
        options = {
            "--upscaler": running.address,
            "--tokens": tmp_path / "t.json",
            "--tls-cert": made / "gateway.crt",
            "--tls-key": made / "gateway.key",
            "--stage-ca": made / "ca.crt",
            "--stage-cert": made / "gateway-client.crt",
            "--stage-key": made / "gateway-client.key",
        }
        arguments = [str(part) for option in options.items() for part in option]
        # Entered on a thread: the stage that the process looks for is served by this one.
        process = gateway_process(*arguments)
        _, announced = await asyncio.to_thread(process.__enter__)
        try:
            async with Client(announced["address"], ca=made / "ca.crt", token=token) as client:
                asked = RunSpec(upscale={}, init_images=[{"data": png(7)}])
                events = [event async for event in client.stream_run(asked)]
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
