"""The gRPC options of our servers, and of the channels between them; those of all connections are in triptych."""

from collections.abc import Sequence

import grpc

from services.serving.tls import Certificates, channel_credentials
from triptych._grpc_options import KEEPALIVE, MESSAGE_SIZES, PING_AFTER_MS

# Between the gateway and the stages: a picture of 25 megapixels as the PNG of noise, three bytes a pixel, and a mask.
# Larger results come in chunks.
MAX_STAGE_IMAGE_BYTES = 80 * 2**20
MAX_STAGE_MESSAGE_BYTES = MAX_STAGE_IMAGE_BYTES + 6 * 2**20

_STAGE_MESSAGE_SIZES = (
    ("grpc.max_send_message_length", MAX_STAGE_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_STAGE_MESSAGE_BYTES),
)

# No grpc.max_connection_age_ms: it cuts streams unless its grace outlasts the longest of them.
_SERVER_OPTIONS = (
    # A server pings, too: a caller that vanished without a word must not keep a device busy.
    *KEEPALIVE,
    # A server without an option that permits pings answers the third one with "too many pings" and hangs up.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_AFTER_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
    # Of a request that nobody has begun to read, a stream's window is all that is kept. The probe would widen it to
    # megabytes; the window of a request that is being read opens to the request's size all the same.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 64 * 2**10),
    # The default is no limit. A gateway asks one worker for fewer images at once than this.
    ("grpc.max_concurrent_streams", 1_000),
    ("grpc.max_metadata_size", 16 * 2**10),
    # A connection that never completes the HTTP/2 handshake; the default is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Two processes on one port would share its callers between them; a port in use is a mistake that must show.
    ("grpc.so_reuseport", 0),
)
SERVER_OPTIONS: Sequence[tuple[str, int]] = (*MESSAGE_SIZES, *_SERVER_OPTIONS)
STAGE_SERVER_OPTIONS: Sequence[tuple[str, int]] = (*_STAGE_MESSAGE_SIZES, *_SERVER_OPTIONS)

# No keepalive_permit_without_calls here: the gateway asks for each worker's health often enough.
CLIENT_OPTIONS: Sequence[tuple[str, int]] = (
    *_STAGE_MESSAGE_SIZES,
    *KEEPALIVE,
    # A name's TXT record could otherwise bring retry policies and timeouts that nobody here wrote.
    ("grpc.service_config_disable_resolution", 1),
    # A retry policy acts only before the first message, so it saves no stream; replay is the gateway's own work.
    ("grpc.enable_retries", 0),
    # Workers are neighbours: http_proxy in the environment is meant for the world outside.
    ("grpc.enable_http_proxy", 0),
    # A worker that comes back should be found within seconds; the default waits up to two minutes between tries.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Channels to one address would share a connection, and its backoff, with an older channel of the process.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(
    address: str, certificates: Certificates | None = None, *, server_name: str | None = None
) -> grpc.aio.Channel:
    """A channel to one server at "host:port"; it connects at the first call and must be closed.

    With `certificates` both ends prove who they are. `server_name` is whom the server's certificate must be for, where
    that is not the host.
    """
    if certificates is None:
        return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
    name = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.aio.secure_channel(
        address, channel_credentials(certificates), options=[*CLIENT_OPTIONS, *name]
    )
