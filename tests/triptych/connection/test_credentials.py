"""A caller with a token and certificates, at a gateway that asks for them."""

import shutil

import pytest
from click.testing import CliRunner

from gateway.access.authentication import Authentication
from gateway.access.caller import Caller
from gateway.access.certs_command import certs
from gateway.access.token_file import new_token, write_tokens
from services.serving.server import serving
from services.serving.tls import CertificateFiles
from triptych._reconnect import Backoff
from triptych.client import Client, PermissionDenied, Unauthenticated, Unreachable
from triptych.credentials import Credentials
from triptych.v1.pipeline_pb2 import ListModelsResponse
from triptych.v1.pipeline_pb2_grpc import PipelineServiceServicer, add_PipelineServiceServicer_to_server


class Pipeline(PipelineServiceServicer):
    async def ListModels(self, request, context):
        return ListModelsResponse(models=[{"num_workers": 7}])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates") / "made"
    CliRunner().invoke(certs, [str(folder)], catch_exceptions=False)
    return folder


@pytest.fixture
def token(made):
    token, entry = new_token(Caller("alice"))
    write_tokens(made / "tokens.json", [entry])
    return token


def gateway(made, certificate):
    return serving(
        lambda server: add_PipelineServiceServicer_to_server(Pipeline(), server),
        services=["triptych.v1.PipelineService"],
        authenticate=Authentication(made / "tokens.json").enter,
        certificate=certificate,
        grace_s=0,
    )


async def num_workers(address, **credentials):
    async with Client(address, backoff=Backoff(give_up_after_s=0), **credentials) as client:
        [model] = await client.list_models()
        return model.num_workers


async def test_a_caller_with_its_token_and_the_authority_is_served(made, token):
    async with gateway(made, CertificateFiles(made / "gateway.crt", made / "gateway.key")) as running:
        assert await num_workers(running.address, token=token, ca=made / "ca.crt") == 7


async def test_a_caller_without_a_token_learns_it(made, token):
    async with gateway(made, None) as running:
        with pytest.raises(Unauthenticated, match="expected a token"):
            await num_workers(running.address)
        with pytest.raises(PermissionDenied, match="does not know the token"):
            await num_workers(running.address, token="triptych_wrong")


async def test_on_loopback_a_token_needs_no_certificates(made, token):
    async with gateway(made, None) as running:
        assert await num_workers(running.address, token=token) == 7


async def test_a_gateway_that_asks_for_certificates_is_shown_one(made, token):
    async with gateway(
        made, CertificateFiles(made / "gateway.crt", made / "gateway.key", made / "ca.crt")
    ) as running:
        shown = {"cert": made / "gateway-client.crt", "key": made / "gateway-client.key"}
        assert await num_workers(running.address, token=token, ca=made / "ca.crt", **shown) == 7


async def test_the_world_s_authorities_do_not_vouch_for_a_private_gateway(made, token):
    async with gateway(made, CertificateFiles(made / "gateway.crt", made / "gateway.key")) as running:
        with pytest.raises(Unreachable):
            await num_workers(f"https://{running.address}", token=token)


async def test_a_client_takes_up_another_authority_while_it_is_open(made, token, tmp_path):
    other = tmp_path / "other"
    CliRunner().invoke(certs, [str(other)], catch_exceptions=False)
    ca = tmp_path / "ca.crt"
    shutil.copy(other / "ca.crt", ca)
    listening = gateway(made, CertificateFiles(made / "gateway.crt", made / "gateway.key"))
    once = Backoff(give_up_after_s=0)
    async with listening as running, Client(running.address, token=token, ca=ca, backoff=once) as client:
        with pytest.raises(Unreachable):
            await client.list_models()
        shutil.copy(made / "ca.crt", tmp_path / "new.crt")
        (tmp_path / "new.crt").replace(ca)
        assert await client.list_models()
        ca.unlink()
        assert await client.list_models(), "a file that is away for a moment changes nothing"


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ca\.crt"):
        Client("127.0.0.1:1", ca=tmp_path / "ca.crt")


def test_a_token_is_not_printed_with_the_rest():
    assert "secret" not in repr(Credentials("secret"))
