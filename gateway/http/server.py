"""Serves the HTTP application on the event loop that it is called on, beside gRPC: `serving_http` is its whole life."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvicorn

from gateway.http.app import make_app
from gateway.http.context import RequestContext
from gateway.http.middleware.closing import is_no_cut_answer
from gateway.http.middleware.connections import BoundedProtocol
from gateway.http.middleware.proxies import ANY, ProxyHeadersMiddleware, TrustedProxies
from gateway.workers.targets import join
from services.serving.limits.connection_guard import guarding
from services.serving.server import AddressInUse
from services.serving.tls import CertificateFiles, server_context

# Of a caller who asks for nothing.
KEEP_ALIVE_S = 15
# A peer that takes nothing of what it has been sent for so long is gone, also when it does not say so; the kernel
# then ends the connection, and with it what is held for it.
TAKE_TIMEOUT_MS = 60_000
MAX_HEADER_BYTES = 64 * 2**10
BACKLOG = 512


@dataclass(frozen=True)
class ServingHttp:
    """Where it listens."""

    port: int
    address: str
    stop: Callable[[], None]


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the process handles signals in one place."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def serving_http(
    api: RequestContext,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    grace_s: float | Callable[[], float] = 30.0,
    hosts: Collection[str] = (),
    certificate: CertificateFiles | None = None,
    proxies: TrustedProxies = TrustedProxies(()),  # noqa: B008 - frozen
) -> AsyncIterator[ServingHttp]:
    """Answers inside the block; on exit event streams end at once, and other calls have `grace_s`, or what is left of it by
    then if it is a function. Raises AddressInUse.

    `hosts`: names under which it may be asked, beside "localhost" and addresses, where everybody may call: without a
    token to ask for, a page whose name resolves to us would be let in; "*": any. With a `certificate` it is HTTPS.
    `proxies` are believed what they say of the caller.
    """
    listening = _listen(host, port)
    is_checked = api.authentication.is_open and ANY not in hosts
    known = [*hosts, urlsplit(api.public_url).hostname or ""] if api.public_url else hosts
    app = make_app(api, hosts=known if is_checked else None)
    config = uvicorn.Config(
        ProxyHeadersMiddleware(app, proxies),
        # uvicorn's own believes anybody on this machine.
        proxy_headers=False,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ssl_context_factory=(lambda _config, _default: server_context(certificate)) if certificate else None,
    )
    # Adding the same filter again changes nothing.
    logging.getLogger("uvicorn.error").addFilter(is_no_cut_answer)
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listening]), name="http")
    ready = asyncio.create_task(server.ready.wait())
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    bound = listening.getsockname()[1]

    def stop() -> None:
        """Begins the end without waiting for it."""
        api.closing.set()
        if not server.should_exit:
            # uvicorn takes fractions of seconds, too; its type does not say so. None would be no end.
            left_s = grace_s() if callable(grace_s) else grace_s
            config.timeout_graceful_shutdown = max(0.1, left_s)  # type: ignore[assignment]
        server.should_exit = True

    try:
        # Of connections whose TLS never begins uvicorn does not know.
        async with guarding([bound], lambda _host, _port: True):
            yield ServingHttp(bound, join(host, bound), stop)
    finally:
        stop()
        await running


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections take it over from here
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TAKE_TIMEOUT_MS)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise AddressInUse(
            f"cannot listen on {join(host, port)}: {error.strerror}; choose another --http-port, or 0 for any "
            "free one"
        ) from None
    listening.setblocking(False)
    return listening
