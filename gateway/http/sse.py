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
# What a browser waits before it connects again.
RETRY_MS = 2_000

COMMENT = b": still here\n\n"


def message(data: bytes, *, event: str = "", sequence: int | None = None) -> bytes:
    """One event as it travels; `data` is JSON in one line."""
    name = f"event: {event}\n".encode() if event else b""
    place = b"" if sequence is None else f"id: {sequence}\n".encode()
    return b"".join((place, name, b"data: ", data, b"\n\n"))


class EventStream(Response):
    """Sends messages until they end, the reader is gone, or `closing` is set; then closes their generator."""

    media_type = "text/event-stream"

    def __init__(
        self,
        messages: AsyncGenerator[bytes],
        closing: asyncio.Event,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        resumable: bool = False,
    ) -> None:
        """`resumable`: makes a browser reconnect, and sets the delay. The `openai` package would take that for an event."""
        self._messages = messages
        self._closing = closing
        self._heartbeat_s = heartbeat_s
        self._can_come_back = resumable
        self._is_quiet = True
        self.status_code = 200
        self.background = None
        # A proxy that collects an answer before it passes it on would hold events up.
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
            if self._can_come_back:
                await write(f"retry: {RETRY_MS}\n\n".encode())
            async for one in messages:
                await write(one)
                # A reader of a long run that is over would otherwise have all of it before anybody else's turn.
                await asyncio.sleep(0)

    async def _send_heartbeats(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            self._is_quiet = True
            await asyncio.sleep(self._heartbeat_s)
            if self._is_quiet:
                await write(COMMENT)
