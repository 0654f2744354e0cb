"""Server-sent events: a streaming response with heartbeats.

Nothing is queued: the next event is asked for when the last one is on its way, so a slow reader costs no memory; one
that accepts no data is closed by the kernel (server.py) and can resume.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.http.disconnect import until_disconnect

HEARTBEAT_S = 15.0
# The delay before a browser reconnects.
RETRY_MS = 2_000

HEARTBEAT = b": still here\n\n"


def message(data: bytes, *, event: str = "", sequence: int | None = None) -> bytes:
    """One event as it travels; `data` is JSON in one line."""
    name = f"event: {event}\n".encode() if event else b""
    event_id = b"" if sequence is None else f"id: {sequence}\n".encode()
    return b"".join((event_id, name, b"data: ", data, b"\n\n"))


class EventStream(Response):
    """Sends messages until they end, the client disconnects, or `closing` is set; then closes their generator."""

    media_type = "text/event-stream"

    def __init__(
        self,
        messages: AsyncGenerator[bytes],
        closing: asyncio.Event,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        resumable: bool = False,
    ) -> None:
        """`resumable`: sends `retry:`, with which browsers reconnect; the `openai` package would read it as an event."""
        self._messages = messages
        self._closing = closing
        self._heartbeat_s = heartbeat_s
        self._resumable = resumable
        self._is_quiet = True
        self.status_code = 200
        self.background = None
        # Keeps proxies from buffering the stream.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.Lock()

        async def write(data: bytes) -> None:
            async with sending:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            self._is_quiet = False

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        ends = (
            self._write_all(write),
            self._send_heartbeats(write),
            until_disconnect(receive),
            self._closing.wait(),
        )
        tasks = [asyncio.ensure_future(end) for end in ends]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_all(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        async with aclosing(self._messages) as messages:
            if self._resumable:
                await write(f"retry: {RETRY_MS}\n\n".encode())
            async for one in messages:
                await write(one)
                # Lets other tasks run: all events of a finished run are ready at once.
                await asyncio.sleep(0)

    async def _send_heartbeats(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            self._is_quiet = True
            await asyncio.sleep(self._heartbeat_s)
            if self._is_quiet:
                await write(HEARTBEAT)
