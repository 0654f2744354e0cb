"""A relay between a client and a gateway that cuts its connections: what a poor network does to a stream."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# How much of a connection passes before it is cut, beyond what its handshake and a request need.
LEAST_BYTES = 2_000
CHUNK_BYTES = 1_000


class Relay:
    """Forwards bytes both ways; while it has cuts left, each connection ends after a number of bytes that is drawn."""

    def __init__(self, target: str, rng: random.Random, *, num_cuts: int, most_bytes: int) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._rng = rng
        self.address = ""
        self.num_cuts = 0
        self.cuts_left = num_cuts
        self._most_bytes = most_bytes
        # Of the connections that there are: their near ends, and the tasks that forward.
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[writer] = task
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            del self._connections[writer]
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, far_writer))
                group.create_task(self._forward_and_cut(far_reader, writer))
        except* (ConnectionError, Cut):
            pass
        finally:
            for each in (writer, far_writer):
                each.transport.abort()
            del self._connections[writer]

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        raise Cut

    async def _forward_and_cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._rng.randint(LEAST_BYTES, self._most_bytes)
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
            left -= len(data)
            if left <= 0 and self.cuts_left:
                self.cuts_left -= 1
                self.num_cuts += 1
                raise Cut
        raise Cut

    async def close(self) -> None:
        tasks = list(self._connections.values())
        for writer in list(self._connections):
            writer.transport.abort()
        await asyncio.gather(*tasks)


class Cut(Exception):
    pass


@asynccontextmanager
async def relay(target: str, *, seed: int, num_cuts: int, most_bytes: int = 20_000) -> AsyncIterator[Relay]:
    """A relay to `target` on a port of its own."""
    relaying = Relay(target, random.Random(seed), num_cuts=num_cuts, most_bytes=most_bytes)
    server = await asyncio.start_server(relaying.serve, "127.0.0.1", 0)
    relaying.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relaying
    finally:
        server.close()
        await relaying.close()
