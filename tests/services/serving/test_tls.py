"""Certificates between real sockets: who is let in, who is believed, and files that change."""

import asyncio
import logging
import shutil
import socket
import ssl
from contextlib import asynccontextmanager

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.access.certs_command import certs
from services.serving.channels import open_channel
from services.serving.server import serving
from services.serving.tls import CertificateError, CertificateFiles
from triptych.v1 import generator_pb2, generator_pb2_grpc

SERVICE = "triptych.v1.GeneratorService"


class Generator(generator_pb2_grpc.GeneratorServiceServicer):
    async def GetModel(self, request, context):
        return generator_pb2.GeneratorServiceGetModelResponse()


def make_certificates(folder):
    CliRunner().invoke(certs, [str(folder)], catch_exceptions=False, standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two authorities: "ours", and one that nobody here trusts."""
    folder = tmp_path_factory.mktemp("certificates")
    return {name: make_certificates(folder / name) for name in ("ours", "theirs")}


@pytest.fixture
def ours(made, tmp_path):
    """A copy of our certificates that a test may change."""
    return shutil.copytree(made["ours"], tmp_path / "ours")


def files(folder, name, ca="ca.crt"):
    return CertificateFiles(folder / f"{name}.crt", folder / f"{name}.key", ca and folder / ca)


@asynccontextmanager
async def stage(certificate, **more):
    async with serving(
        lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(Generator(), server),
        services=[SERVICE],
        certificate=certificate,
        grace_s=0,
        **more,
    ) as running:
        yield running


async def call(running, certificates, **more):
    """Raises AioRpcError where the two do not trust each other."""
    async with open_channel(running.address, certificates and certificates.current(), **more) as channel:
        stub = generator_pb2_grpc.GeneratorServiceStub(channel)
        return await stub.GetModel(generator_pb2.GeneratorServiceGetModelRequest(), timeout=120)


async def test_a_stage_lets_the_gateway_in(ours):
    async with stage(files(ours, "generator")) as running:
        assert await call(running, files(ours, "gateway-client")) is not None


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(lambda made: None, id="no TLS"),
        pytest.param(lambda made: CertificateFiles(ca=made["ours"] / "ca.crt"), id="no certificate"),
        pytest.param(lambda made: files(made["ours"], "refiner"), id="a server's certificate"),
        pytest.param(
            lambda made: CertificateFiles(
                made["theirs"] / "gateway-client.crt",
                made["theirs"] / "gateway-client.key",
                made["ours"] / "ca.crt",
            ),
            id="another authority's certificate",
        ),
    ],
)
async def test_a_stage_refuses_a_peer_without_the_right_certificate(made, peer):
    async with stage(files(made["ours"], "generator")) as running:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(running, peer(made))
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await call(running, files(made["ours"], "gateway-client")) is not None


async def test_a_stage_refuses_health_checks_without_a_certificate_too(made):
    async with stage(files(made["ours"], "generator")) as running:
        with_none = CertificateFiles(ca=made["ours"] / "ca.crt").current()
        async with open_channel(running.address, with_none) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            with pytest.raises(grpc.aio.AioRpcError):
                await check(health_pb2.HealthCheckRequest(), timeout=120)


async def test_a_health_port_answers_probes_without_a_certificate_and_nothing_else(made):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with (
        stage(files(made["ours"], "generator"), health_port=port) as running,
        open_channel(f"127.0.0.1:{port}") as channel,
    ):
        await running.set_serving(True)
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await generator_pb2_grpc.GeneratorServiceStub(channel).GetModel(
                generator_pb2.GeneratorServiceGetModelRequest()
            )
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_stage_of_another_authority_is_not_believed(made):
    async with stage(files(made["theirs"], "generator")) as running:
        trusting_ours = files(made["ours"], "gateway-client")
        with pytest.raises(grpc.aio.AioRpcError, match="failed to connect"):
            await call(running, trusting_ours)


async def test_behind_a_name_a_stage_must_prove_to_be_that_name(ours):
    async with stage(files(ours, "generator")) as running:
        gateway = files(ours, "gateway-client")
        assert await call(running, gateway, server_name="generator") is not None
        with pytest.raises(grpc.aio.AioRpcError, match="failed to connect"):
            await call(running, gateway, server_name="refiner")


async def shown(running):
    """The certificate that a new connection is shown."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", running.port))


async def test_a_changed_certificate_is_shown_to_the_next_connection(ours):
    async with stage(files(ours, "generator", ca=None)) as running:
        before = await shown(running)
        CliRunner().invoke(certs, [str(ours), "--renew"], catch_exceptions=False)
        after = await shown(running)
    assert after == (ours / "generator.crt").read_text()
    assert after != before


async def test_a_certificate_is_not_taken_up_before_its_key_is_there(ours, made, caplog):
    key = (ours / "generator.key").read_bytes()
    async with stage(files(ours, "generator", ca=None)) as running:
        before = await shown(running)
        shutil.copy(made["theirs"] / "generator.crt", ours)
        during = [await shown(running) for _ in range(2)]
        shutil.copy(made["theirs"] / "generator.key", ours)
        after = await shown(running)
    assert during == [before, before]
    assert after == (made["theirs"] / "generator.crt").read_text()
    # Once, though two connections met it.
    problems = [record.levelname for record in caplog.records if record.levelno >= logging.WARNING]
    assert problems == ["ERROR"]
    assert key.decode().splitlines()[1] not in caplog.text


async def test_a_changed_authority_locks_out_those_of_the_old_one(ours, made):
    old = files(made["ours"], "gateway-client")
    new = CertificateFiles(
        made["theirs"] / "gateway-client.crt", made["theirs"] / "gateway-client.key", made["ours"] / "ca.crt"
    )
    async with stage(files(ours, "generator")) as running:
        assert await call(running, old) is not None
        shutil.copy(made["theirs"] / "ca.crt", ours)
        assert await call(running, new) is not None
        with pytest.raises(grpc.aio.AioRpcError):
            await call(running, old)


def test_what_is_in_the_files_is_the_same_object_until_they_change(ours):
    gateway = files(ours, "gateway-client")
    before = gateway.current()
    assert gateway.current() is before
    CliRunner().invoke(certs, [str(ours), "--renew"], catch_exceptions=False)
    assert gateway.current() is not before


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "generator.crt").unlink(), "cannot read .*generator.crt: No such file"),
        (lambda folder: (folder / "generator.key").write_text("x"), "no certificate in PEM with its key"),
        (lambda folder: shutil.copy(folder / "refiner.key", folder / "generator.key"), "with its key"),
        (lambda folder: (folder / "ca.crt").write_text("x"), "ca.crt has no certificates in PEM"),
    ],
)
def test_files_that_cannot_be_used_are_refused(ours, spoil, complaint):
    spoil(ours)
    with pytest.raises(CertificateError, match=complaint):
        files(ours, "generator")


def test_a_certificate_without_its_key_is_refused(ours):
    with pytest.raises(CertificateError, match="go together"):
        CertificateFiles(cert=ours / "generator.crt")
