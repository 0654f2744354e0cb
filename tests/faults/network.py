"""Networks that break: a relay that anybody can run, and real network namespaces where this user may make them."""

import asyncio
import itertools
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

_numbers = itertools.count(os.getpid() % 200)


class Relay:
    """Forwards connections to a worker until it is told to harm them."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self._target = target
        self._lets_pass = asyncio.Event()
        self._lets_pass.set()
        self._refuses = False
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    def swallow(self) -> None:
        """From now on nothing comes through and nothing is said of it: a cable that was pulled."""
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
        try:
            far, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections[writer] = task
        ways = [
            asyncio.create_task(self._forward(near, far_writer)),
            asyncio.create_task(self._forward(far, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for each in (writer, far_writer):
                each.transport.abort()
            del self._connections[writer]

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                await self._lets_pass.wait()
                writer.write(data)
                await writer.drain()

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
async def relay(target: str) -> AsyncIterator[Relay]:
    """A relay to `target` on a port of its own."""
    made = Relay(target)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await made.close()


class Namespace:
    """A network of its own with one cable to ours. It vanishes with the process that holds it, and that with us."""

    def __init__(self, number: int) -> None:
        self._cable = f"tript{number}"
        self.host = f"198.18.{number % 256}.2"  # a range that is meant for tests of networks (RFC 2544)
        self._our_host = f"198.18.{number % 256}.1"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"made\n", "no network namespace can be made"

    @property
    def prefix(self) -> list[str]:
        """What makes a command run inside."""
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--"]

    def lay_cable(self) -> None:
        _run(
            "ip",
            "link",
            "add",
            self._cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self._holder.pid),
        )
        _run("ip", "address", "add", f"{self._our_host}/30", "dev", self._cable)
        _run("ip", "link", "set", self._cable, "up")
        for command in (
            ("ip", "address", "add", f"{self.host}/30", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("ip", "link", "set", "lo", "up"),
        ):
            _run(*self.prefix, *command)

    def swallow(self) -> None:
        """Every packet is dropped, both ways."""
        for chain in ("INPUT", "OUTPUT"):
            _run(*self.prefix, "iptables", "--insert", chain, "--jump", "DROP")

    def reset(self) -> None:
        """Every packet is answered with a TCP reset."""
        _run(*self.prefix, "iptables", "--insert", "INPUT", "--protocol", "tcp", "--jump", "REJECT", "--reject-with", "tcp-reset")  # fmt: skip

    def mend(self) -> None:
        _run(*self.prefix, "iptables", "--flush")

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Raises OSError or CalledProcessError where this user or this machine cannot make one."""
    made = Namespace(next(_numbers))
    try:
        made.lay_cable()
        yield made
    finally:
        made.close()


def why_no_namespace() -> str:
    """Empty where network namespaces can be made and their packets dropped."""
    if missing := [name for name in ("unshare", "nsenter", "ip", "iptables") if not shutil.which(name)]:
        return f"there is no {missing[0]} here"
    if os.geteuid():
        return "only root may make network namespaces"
    try:
        with namespace() as tried:
            tried.swallow()
            tried.mend()
            tried.reset()
    except (OSError, AssertionError, subprocess.CalledProcessError) as error:
        return f"this machine makes no network namespaces: {error}"
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)
