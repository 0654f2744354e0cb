"""A TCP relay that harms the connections through it: cut after some bytes, swallowed, dropped or reset."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

# How much of a connection passes before it is cut, beyond what its handshake and a request need.
LEAST_BYTES = 2_000
CHUNK_BYTES = 1_000


class Relay:
    """Forwards bytes both ways. While it has cuts left, each connection ends after a number of bytes from the target that
    `rng` draws, up to `most_bytes`."""

    def __init__(self, target: str, rng: random.Random, *, num_cuts: int, most_bytes: int) -> None:
        self.address = ""
        self.num_cuts = 0
        self.cuts_left = num_cuts
        self._target = target
        self._rng = rng
        self._most_bytes = most_bytes
        self._lets_pass = asyncio.Event()
        self._lets_pass.set()
        self._refuses = False
        # Of the connections that there are: their near ends, and the tasks that forward.
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    def swallow(self) -> None:
        """From now on nothing comes through, without a word: a cable that was pulled."""
        self._lets_pass.clear()

    def drop(self) -> None:
        """Ends all connections in order, and every new one at once."""
        self._refuses = True
        for writer in list(self._connections):
            writer.close()

    def reset(self) -> None:
        """Ends all connections with a TCP reset, and every new one at once."""
        self._refuses = True
        for writer in list(self._connections):
            _reset(writer)

    def mend(self) -> None:
        self._refuses = False
        self._lets_pass.set()

    async def serve(self, near: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            _reset(writer)
            return
        host, _, port = self._target.rpartition(":")
        task = asyncio.current_task()
        assert task is not None
        self._connections[writer] = task
        far_writer = None
        ways: list[asyncio.Task[None]] = []
        try:
            far, far_writer = await asyncio.open_connection(host, int(port))
            ways = [
                asyncio.create_task(self._forward(near, far_writer)),
                asyncio.create_task(self._forward(far, writer, self._draw_cut())),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            _reset(writer)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for each in (writer, far_writer):
                if each is not None:
                    each.transport.abort()
            del self._connections[writer]

    def _draw_cut(self) -> int | None:
        """After how many bytes the connection is cut; None: never."""
        return self._rng.randint(LEAST_BYTES, self._most_bytes) if self._most_bytes else None

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut_after: int | None = None
    ) -> None:
        num_bytes = 0
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                await self._lets_pass.wait()
                writer.write(data)
                await writer.drain()
                num_bytes += len(data)
                if cut_after is not None and num_bytes >= cut_after and self.cuts_left:
                    self.cuts_left -= 1
                    self.num_cuts += 1
                    return

    async def close(self) -> None:
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    # With this, the close that abort() makes sends RST in place of FIN.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def relay(
    target: str, *, seed: int = 0, num_cuts: int = 0, most_bytes: int = 20_000
) -> AsyncIterator[Relay]:
    """A relay to `target` on a port of its own."""
    made = Relay(target, random.Random(seed), num_cuts=num_cuts, most_bytes=most_bytes if num_cuts else 0)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await made.close()
