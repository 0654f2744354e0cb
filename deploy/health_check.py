"""Checks whether a worker answers at its address, from the gateway's machine."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triptych.credentials import Credentials

TIMEOUT_S = 2.0


def health_error(address: str, credentials: Credentials | None = None) -> str:
    """Nothing when it serves; else why not, in a few words."""
    options = [("grpc.enable_http_proxy", 0)]
    with (
        grpc.secure_channel(address, credentials.for_channel(), options)
        if credentials is not None
        else grpc.insecure_channel(address, options)
    ) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # untyped in its stubs
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            return error.details() or str(error.code())
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return "" if reply.status == health_pb2.HealthCheckResponse.SERVING else f"it says {status}"
