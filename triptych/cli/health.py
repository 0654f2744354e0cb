"""`triptych health`: asks a server's gRPC health service once; made for container health checks."""

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triptych.addresses import check_address
from triptych.cli.credential_options import credential_options
from triptych.credentials import Credentials
from triptych.terminal_text import echo


@click.command()
@click.argument("address")
@click.argument("service", default="")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=5.0,
    help="Seconds to wait for the answer.",
)
@credential_options
def health(address: str, service: str, timeout_s: float, credentials: Credentials) -> None:
    """Ask the server at ADDRESS (HOST:PORT) whether SERVICE serves.

    SERVICE is a full name such as triptych.v1.PipelineService; without it the whole server is meant. Exits with 0
    when it serves and with 1 when it does not, or nobody answers.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    options = [("grpc.enable_http_proxy", 0)]
    try:
        target = check_address(address).to_target()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS") from None
    with (
        grpc.secure_channel(target, credentials.for_channel(), options)
        if credentials.is_encrypted(address)
        else grpc.insecure_channel(target, options)
    ) as channel:
        try:
            # The typed stubs of grpcio-health-checking declare the class and none of its methods.
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            reply = check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise click.ClickException(f"{service or 'the server'} at {address}: {reason(error)}") from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise click.ClickException(
            f"{service or 'the server'} at {address} answers {status}, expected SERVING"
        )
    echo(status)


def reason(error: grpc.RpcError) -> str:
    if error.code() == grpc.StatusCode.NOT_FOUND:
        return "the server does not know a service of that name"
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return "nobody answers there; start it with `triptych serve` or `triptych up`"
    return f"{error.code().name}: {error.details()}"
