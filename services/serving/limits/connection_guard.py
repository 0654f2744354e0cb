"""Limits the connections to the ports of this process.

gRPC's core accepts connections by itself and has no bound for each address, so this reads the process's own sockets every
second. A connection that never sends a byte is closed after some seconds; where an address has too many, or the process
has, those that have been silent longest are closed. Linux only: elsewhere it does nothing.
"""

import asyncio
import logging
import os
import resource
import socket
import stat
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SILENT_FOR_S = 10.0
MAX_PER_ADDRESS = 500
# Files, stages and the journal need some descriptors, too.
SPARE_DESCRIPTORS = 256
WANTED_DESCRIPTORS = 8_192

_FOLDER = "/proc/self/fd"
# struct tcp_info of Linux: the milliseconds since data came, and the bytes that came in all.
_LAST_DATA_AT, _BYTES_AT, _INFO_BYTES = 52, 128, 136


@dataclass(frozen=True)
class Connection:
    """An accepted connection; `number` is its file descriptor."""

    number: int
    peer: tuple[str, int]
    silent_s: float
    num_bytes: int


def raise_descriptor_limit() -> int:
    """As many open files as this process may have, up to some thousands; returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft if soft != resource.RLIM_INFINITY else WANTED_DESCRIPTORS


@asynccontextmanager
async def guarding(ports: Collection[int], is_busy: Callable[[str, int], bool]) -> Any:
    """Keeps to the bounds inside the block; `is_busy` returns whether calls run on the connection of a host and port."""
    if not os.path.isdir(_FOLDER) or not hasattr(socket, "TCP_INFO"):  # noqa: ASYNC240 - once
        yield
        return
    most = max(64, raise_descriptor_limit() - SPARE_DESCRIPTORS)
    looking = asyncio.create_task(_look_forever(frozenset(ports), is_busy, most), name="connections")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look_forever(ports: frozenset[int], is_busy: Callable[[str, int], bool], most: int) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            found = list(connections_to(ports))
            surplus = choose_surplus(found, is_busy, most=most)
        except OSError as error:
            log.warning("the connections cannot be counted: %s", error)
            continue
        for one in surplus:
            close(one)
        if surplus:
            log.warning("closed %d of %d connections that were silent or too many", len(surplus), len(found))


def choose_surplus(
    found: Collection[Connection],
    is_busy: Callable[[str, int], bool],
    *,
    per_address: int = MAX_PER_ADDRESS,
    most: int,
) -> list[Connection]:
    """The connections to close: those that never said anything, then for each bound the longest silent, idle ones first."""
    surplus = [one for one in found if not one.num_bytes and one.silent_s >= SILENT_FOR_S]
    kept = [one for one in found if one not in surplus]
    by_host: dict[str, list[Connection]] = defaultdict(list)
    for one in kept:
        by_host[one.peer[0]].append(one)

    def order(one: Connection) -> tuple[bool, float]:
        return is_busy(*one.peer), -one.silent_s

    for crowd in by_host.values():
        surplus += sorted(crowd, key=order)[: max(0, len(crowd) - per_address)]
    rest = [one for one in kept if one not in surplus]
    return surplus + sorted(rest, key=order)[: max(0, len(rest) - most)]


def close_connection(ports: Collection[int], host: str, port: int) -> None:
    """Ends the connection that this peer has made to one of these ports, if it is there."""
    for one in connections_to(ports):
        if one.peer == (host, port) or one.peer == (f"::ffff:{host}", port):
            close(one)


def connections_to(ports: Collection[int]) -> Iterator[Connection]:
    """This process's connections that others have made to these ports."""
    for name in os.listdir(_FOLDER):
        number = int(name)
        with suppress(OSError, ValueError), _borrowed(number) as borrowed:
            if borrowed is None or borrowed.getsockname()[1] not in ports:
                continue
            peer = borrowed.getpeername()
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            if len(info) < _INFO_BYTES:
                continue
            (silent_ms,) = struct.unpack_from("=I", info, _LAST_DATA_AT)
            (num_bytes,) = struct.unpack_from("=Q", info, _BYTES_AT)
            yield Connection(number, (peer[0], peer[1]), silent_ms / 1e3, num_bytes)


def close(connection: Connection) -> None:
    """Ends the connection; the owner of its descriptor finds that the peer is gone."""
    with suppress(OSError), _borrowed(connection.number) as borrowed:
        # The number may be another connection's by now.
        if borrowed is not None and borrowed.getpeername()[:2] == connection.peer:
            borrowed.shutdown(socket.SHUT_RDWR)


class _borrowed:  # noqa: N801 - used as a function
    """A socket on a copy of the descriptor, so that closing it closes nothing of others; None for what is no TCP socket."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._socket: socket.socket | None = None

    def __enter__(self) -> socket.socket | None:
        copy = os.dup(self._number)
        try:
            if not stat.S_ISSOCK(os.fstat(copy).st_mode):
                os.close(copy)
                return None
            self._socket = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            raise
        is_tcp = (
            self._socket.family in (socket.AF_INET, socket.AF_INET6)
            and self._socket.type == socket.SOCK_STREAM
        )
        return self._socket if is_tcp else None

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
