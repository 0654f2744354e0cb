"""What is tried: every method and route, with and without a token, with requests of every kind that was ever trouble.

Everything goes to loopback, a bounded number of calls at a time, and each with a deadline.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import grpc
import httpx

from tests.attacks.victim import MIB, Victim
from triptych.v1 import pipeline_pb2

DEADLINE_S = 20.0
Attack = Callable[[Victim], Awaitable[str]]


@dataclass(frozen=True)
class Attempt:
    """`is_light`: quick enough for every run of the tests. `waits`: it does little, so that others can be tried meanwhile."""

    name: str
    attack: Attack
    is_light: bool = False
    waits: bool = False


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


MESSAGES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "31 MiB of text": lambda: field(1, b"x" * (31 * MIB)),
    "31 MiB of a spec": lambda: field(2, field(1, b"x" * (31 * MIB))),
    "16 million empty submessages": lambda: field(2, b"\x1a\x00" * (16 * MIB - 64)),
    "millions of empty names": lambda: b"\x12\x00" * (8 * MIB),
    "millions of unknown fields": lambda: b"\xf8\x3f\x01" * (8 * MIB),
    "deep groups": lambda: b"\x0b" * MIB,
    "deep submessages": lambda: _nested(2_000),
    "no UTF-8": lambda: field(1, b"\xff\xfe" * 1000),
    "half a message": lambda: field(1, b"x" * 1000)[:-500],
    "no message": lambda: b"\xff" * 4096,
    "NUL": lambda: field(1, b"runs/\x00" * 100),
}
METHODS = [
    *(
        f"/triptych.v1.PipelineService/{one.name}"
        for one in pipeline_pb2.DESCRIPTOR.services_by_name["PipelineService"].methods
    ),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/nobody.Knows/This",
]
BODIES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "40 MiB of text": lambda: b'{"spec": {"prompt": "' + b"x" * (40 * MIB) + b'"}}',
    "40 MiB of base64": lambda: (
        b'{"spec": {"prompt": "x", "init_images": [{"data": "' + b"A" * (40 * MIB) + b'"}]}}'
    ),
    "millions of lists": lambda: b"[" + b"[]," * (10 * MIB) + b"[]]",
    "deep lists": lambda: b"[" * MIB,
    "a number of a million digits": lambda: b'{"spec": {"seed": ' + b"9" * MIB + b"}}",
    "no UTF-8": lambda: b"\xff\xfe" * 1000,
    "half a surrogate": lambda: b'{"spec": {"prompt": "\\ud800"}}',
}
PATHS = [
    ("POST", "/runs"),
    ("POST", "/runs/x/cancel"),
    ("POST", "/runs/x/move"),
    ("POST", "/runs/x/selections"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("POST", "/dalle"),
    ("GET", "/runs/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    ("DELETE", "/runs/%00"),
]


def _nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = field(2, data)
    return data


def attempts() -> Iterator[Attempt]:
    for kind, message in MESSAGES.items():
        for method in METHODS:
            for caller in ("", "attacker"):
                light = method.endswith("/CreateRun") and kind in (
                    "31 MiB of a spec",
                    "16 million empty submessages",
                )
                name = f"grpc {method.rpartition('/')[2]}: {kind}, {caller or 'no token'}"
                yield Attempt(name, calls(method, message, caller, 4), light)
    for kind, body in BODIES.items():
        for verb, path in PATHS:
            for caller in ("", "attacker"):
                light = path == "/runs" and kind in ("40 MiB of text", "millions of lists")
                name = f"http {verb} {path}: {kind}, {caller or 'no token'}"
                yield Attempt(name, _requests(verb, path, body, caller, 4), light)
    crowd = MESSAGES["31 MiB of a spec"]
    for method in ("CreateRun", "GetRun"):
        for caller in ("", "attacker"):
            name = f"grpc {method}: 100 at once, {caller or 'no token'}"
            yield Attempt(
                name, calls(f"/triptych.v1.PipelineService/{method}", crowd, caller, 100), not caller
            )
    yield Attempt(
        "grpc health check: 100 at once of 31 MiB",
        calls("/grpc.health.v1.Health/Check", crowd, "", 100),
        True,
    )
    for where in ("http", "address"):
        for kind, begin in (
            ("silent", b""),
            ("half a head", b"GET /runs HTTP/1.1\r\nhost: x\r\n"),
            ("half TLS", b"\x16\x03\x01\x02"),
        ):
            yield Attempt(
                f"1001 connections to {where}: {kind}",
                connections(where, begin, 1001),
                is_light=kind == "silent",
                waits=True,
            )
    yield Attempt("500 slow bodies", _slow_bodies(500))


def calls(method: str, message: Callable[[], bytes], caller: str, count: int) -> Attack:
    async def attack(victim: Victim) -> str:
        data = message()
        metadata = victim.metadata(caller) if caller else ()
        ends: Counter[str] = Counter()
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]

        async def call(channel: grpc.aio.Channel) -> None:
            try:
                stream = channel.unary_stream(method)(data, metadata=metadata, timeout=DEADLINE_S)
                if await stream.read() is not grpc.aio.EOF:
                    ends["an answer"] += 1
                else:
                    ends["an end"] += 1
                stream.cancel()
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1

        channels = [grpc.aio.insecure_channel(victim.address, options=options) for _ in range(min(4, count))]
        try:
            await asyncio.gather(*[call(channels[i % len(channels)]) for i in range(count)])
        finally:
            for channel in channels:
                await channel.close()
        return _summary(ends)

    return attack


def _requests(verb: str, path: str, body: Callable[[], bytes], caller: str, count: int) -> Attack:
    async def attack(victim: Victim) -> str:
        headers = {"content-type": "application/json"}
        if caller:
            headers["authorization"] = f"Bearer {victim.tokens[caller]}"
        ends: Counter[str] = Counter()
        data = body()

        async def ask(http: httpx.AsyncClient) -> None:
            try:
                ends[str((await http.request(verb, path, content=data)).status_code)] += 1
            except httpx.HTTPError as error:
                ends[type(error).__name__] += 1

        async with httpx.AsyncClient(
            base_url=f"http://{victim.http}", headers=headers, timeout=DEADLINE_S
        ) as http:
            await asyncio.gather(*[ask(http) for _ in range(count)])
        return _summary(ends)

    return attack


def connections(where: str, begin: bytes, count: int) -> Attack:
    async def attack(victim: Victim) -> str:
        host, _, port = getattr(victim, where).rpartition(":")
        held = []
        for _ in range(count):
            one = socket.socket()
            one.settimeout(2)
            try:
                # Not the address of the other caller: each has a bound of its own.
                one.bind(("127.0.0.2", 0))
                one.connect((host, int(port)))
                one.send(begin)
            except OSError:
                pass
            held.append(one)
            await asyncio.sleep(0)
        # Longer than a connection may say nothing.
        await asyncio.sleep(12)
        open_now = sum(not _is_closed(one) for one in held)
        for one in held:
            one.close()
        return f"{open_now} of {count} are open"

    return attack


def _slow_bodies(count: int) -> Attack:
    async def attack(victim: Victim) -> str:
        host, _, port = victim.http.rpartition(":")
        head = f"POST /runs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {victim.tokens['attacker']}\r\ncontent-length: 40000000\r\n\r\n"
        writers = []
        for _ in range(count):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + b"x")
            writers.append(writer)
        await asyncio.sleep(5)
        for writer in writers:
            writer.close()
        return "closed by us"

    return attack


def _is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        while data := one.recv(4096):
            del data
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def _summary(ends: Counter[str]) -> str:
    return ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
