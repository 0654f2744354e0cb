"""The client: typed errors, and options that agree with those of the servers. Its streams are tested with the gateway."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc.aio import Metadata

from services.errors import AlreadyExists, InvalidRequest, NotFound, NoWorker, QueueFull, TriptychError
from services.serving.channels import SERVER_OPTIONS
from services.serving.limits.call_gate import to_status
from triptych import client
from triptych._connection import CHANNEL_OPTIONS
from triptych._grpc_options import MAX_MESSAGE_BYTES
from triptych.client import Client, read_details, to_call_error


def from_server(error: TriptychError) -> grpc.aio.AioRpcError:
    """The error as it arrives at a caller."""
    trailers = Metadata(("grpc-status-details-bin", to_status(error).SerializeToString()))
    return grpc.aio.AioRpcError(error.status, Metadata(), trailers, details=str(error))


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (InvalidRequest("spec.prompt", "is empty"), client.InvalidRequest),
        (NotFound("no such run"), client.NotFound),
        (AlreadyExists("used before"), client.RequestIdReused),
        (QueueFull("full", retry_after_s=2.5), client.Busy),
        (NoWorker("nobody"), client.NoWorker),
    ],
)
def test_an_error_of_the_server_has_a_type_and_its_text(raised, kind):
    error = to_call_error(from_server(raised), "here:1")
    assert type(error) is kind
    assert str(error) == str(raised)
    assert error.reason == raised.reason
    assert error.retry_after_s == raised.retry_after_s


def test_a_refused_field_is_named():
    error = to_call_error(from_server(InvalidRequest("spec.prompt", "is empty")), "here:1")
    assert error.violations == {"spec.prompt": "is empty"}


def test_another_error_keeps_its_reason():
    error = to_call_error(from_server(TriptychError("internal error")), "here:1")
    assert type(error) is client.CallError
    assert (error.reason, error.code) == ("INTERNAL", grpc.StatusCode.INTERNAL)


def test_an_error_without_details_is_known_by_its_status():
    plain = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, Metadata(), Metadata(), details="no such run")
    assert type(to_call_error(plain, "here:1")) is client.NotFound


def test_details_of_another_domain_give_no_reason():
    status = to_status(NotFound("no such run"))
    foreign = error_details_pb2.ErrorInfo(domain="elsewhere", reason="GONE")
    status.details[0].Pack(foreign)
    trailers = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, Metadata(), trailers, details="no such run")
    assert read_details(error).reason == ""


def test_details_that_contradict_the_status_are_not_read():
    trailers = Metadata(("grpc-status-details-bin", to_status(NotFound("a")).SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), trailers, details="b")
    assert read_details(error) == client.ErrorDetails()


async def test_an_address_where_nobody_is_explains_what_to_start():
    async with Client("127.0.0.1:1") as calls:
        with pytest.raises(client.Unreachable, match="no gateway answers at 127.0.0.1:1; start one with"):
            await calls.list_models()


def test_the_client_takes_messages_as_large_as_a_server_sends():
    options = dict(CHANNEL_OPTIONS)
    assert options["grpc.max_receive_message_length"] == MAX_MESSAGE_BYTES
    assert options["grpc.max_send_message_length"] == MAX_MESSAGE_BYTES


def test_servers_permit_the_pings_of_the_client():
    least_ms = dict(SERVER_OPTIONS)["grpc.http2.min_ping_interval_without_data_ms"]
    assert dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] >= least_ms
