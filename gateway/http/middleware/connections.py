"""Closes idle and slow HTTP connections, and the longest idle ones when there are too many.

A connection must send a request's head within seconds and its body within a minute. What waits for an answer, such as a
reader of an event stream, is left alone.
"""

import asyncio
from contextlib import suppress
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# From the beginning of a connection, or the end of the last answer, to the end of the next request's head.
HEAD_TIMEOUT_S = 10.0
# From there to the end of the body, whether or not anybody wants it.
BODY_TIMEOUT_S = 75.0
MAX_CONNECTIONS = 1_000
MAX_CONNECTIONS_PER_ADDRESS = 500
# Each chunk of a body takes a turn of the event loop. So many that are small on average are no body of a program.
MAX_SMALL_CHUNKS = 10_000
MIN_MEAN_CHUNK_BYTES = 16
# What is parsed before the chunks are counted again.
PART_BYTES = 16 * 2**10
# A body that nobody wants is thrown away for so long, so that its sender can read why; then the connection ends. Many
# programs read the answer only after they have sent all, and a reset would take it from them (RFC 9112, 9.6).
LINGER_S = 30.0
# Ended earlier where nothing comes.
LINGER_SILENCE_S = 10.0


class _LingeringTransport:
    """The transport, except that it is not closed at once while the peer still sends a body."""

    def __init__(self, transport: asyncio.Transport, protocol: "BoundedProtocol") -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self._protocol.linger():
            self._transport.close()


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with these bounds."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_body = False
        self._is_refused = False
        self._is_lingering = False
        self._lingers_until = 0.0
        self._num_lines = 0
        self._num_chunked_bytes = 0
        self.since = self.loop.time()
        self.app = self._refusing(self.app)

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, or for the rest of one."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _LingeringTransport(transport, self)))
        self._expect(HEAD_TIMEOUT_S)
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PART_BYTES):
            self._receive(data[start : start + PART_BYTES])

    def _receive(self, part: bytes) -> None:
        if self._is_lingering:
            if (left_s := self._lingers_until - self.loop.time()) > 0:
                self._expect(min(LINGER_SILENCE_S, left_s))
        elif self._has_small_chunks(part):
            self.transport.abort()
        elif not self.transport.is_closing():
            super().data_received(part)

    def _has_small_chunks(self, data: bytes) -> bool:
        """Counts the ends of lines in a body of chunks: each chunk has two, and its content hardly any."""
        if (
            self.conn.their_state is not h11.SEND_BODY
            or (b"transfer-encoding", b"chunked") not in self.headers
        ):
            self._num_lines = self._num_chunked_bytes = 0
            return False
        self._num_lines += data.count(b"\r\n")
        self._num_chunked_bytes += len(data)
        num_chunks = self._num_lines // 2
        return num_chunks > MAX_SMALL_CHUNKS and self._num_chunked_bytes < num_chunks * MIN_MEAN_CHUNK_BYTES

    def linger(self) -> bool:
        """Whether the connection ends later, since its peer is about to get an answer that ends it."""
        if not self._is_refused or self._is_lingering:
            return self._is_lingering
        self._is_lingering = True
        self._lingers_until = self.loop.time() + LINGER_S
        self._expect(LINGER_SILENCE_S)
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            # The peer may have hung up by now.
            with suppress(OSError):
                self.transport.write_eof()
        return True

    def _refusing(self, app: Any) -> Any:
        """The application; an answer that begins before the whole body is here is the last one of its connection."""

        async def refuse(scope: Any, receive: Any, send: Any) -> None:
            async def send_last(message: Any) -> None:
                if message["type"] == "http.response.start" and self.conn.their_state is h11.SEND_BODY:
                    self._is_refused = True
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
                await send(message)

            await app(scope, receive, send_last)

        return refuse

    def handle_events(self) -> None:
        super().handle_events()
        self._follow_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow_state()

    def _follow_state(self) -> None:
        if self._is_lingering:
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            if not self._is_in_body:
                self._is_in_body = True
                self._expect(BODY_TIMEOUT_S)
        elif state is h11.IDLE:
            # Where nothing has changed, a byte more of a head is no reason to wait longer for its end.
            if self._is_in_body or self._timer is None:
                self._is_in_body = False
                self._expect(HEAD_TIMEOUT_S + self.timeout_keep_alive)
        else:
            self._is_in_body = False
            self._stop_timer()

    def _expect(self, within_s: float) -> None:
        self._stop_timer()
        self.since = self.loop.time()
        self._timer = self.loop.call_later(within_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _make_room(self) -> None:
        """Where there are too many connections, closes the one that has been idle longest: of the same address first."""
        if len(self.connections) <= MAX_CONNECTIONS_PER_ADDRESS:
            return
        host = self.client[0] if self.client else ""
        ours = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        same = [one for one in ours if one.client and one.client[0] == host]
        if len(same) > MAX_CONNECTIONS_PER_ADDRESS:
            crowd = same
        elif len(ours) > MAX_CONNECTIONS:
            crowd = ours
        else:
            return
        idle = [one for one in crowd if one.is_idle and one is not self]
        min(idle, key=lambda one: one.since, default=self).transport.abort()
