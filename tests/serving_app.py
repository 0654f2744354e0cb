"""An ASGI application of a test on a real port of loopback: an OpenID provider, or a receiver of webhooks."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp


@asynccontextmanager
async def serving_app(app: ASGIApp, port: int = 0) -> AsyncIterator[str]:
    """Yields its address."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(64)
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = lambda: _nothing()  # type: ignore[method-assign]
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
        listening.close()


class _nothing:  # noqa: N801 - a context manager that leaves signals to pytest
    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None: ...
