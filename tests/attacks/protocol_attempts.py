"""What is tried below the calls: floods of HTTP/2 frames, and HTTP/1 requests that are odd in their heads, parts and pace."""

import asyncio
import gzip
import io
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from tests.attacks.attempts import Attack, Attempt
from tests.attacks.victim import MIB, Victim

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
# Of each flood: so long, or so many bytes.
FLOOD_S = 8.0
FLOOD_BYTES = 64 * MIB
NUM_CONNECTIONS = 4
PATH = b"/triptych.v1.PipelineService/ListRuns"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header that no table keeps (RFC 7541, 6.2.2)."""
    return b"\x00" + _length(name) + _length(value)


def kept(name: bytes, value: bytes) -> bytes:
    """A header that is added to the peer's table (RFC 7541, 6.2.1)."""
    return b"\x40" + _length(name) + _length(value)


def _length(text: bytes) -> bytes:
    number = len(text)
    if number < 127:
        return bytes([number]) + text
    out, number = [127], number - 127
    while number > 127:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number]) + text


def call_head(path: bytes = PATH, *more: bytes) -> bytes:
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc"))  # fmt: skip
    return b"".join(literal(name, value) for name, value in fields) + b"".join(more)


def streams(make: Callable[[int], bytes]) -> Iterator[bytes]:
    """What `make` gives for one stream after the other."""
    for number in range(1, 2**31 - 1, 2):
        yield make(number)


def forever(data: bytes) -> Iterator[bytes]:
    while True:
        yield data


def long_head() -> Iterator[bytes]:
    """One head without an end."""
    yield frame(HEADERS, 0, 1, call_head())
    yield from forever(frame(CONTINUATION, 0, 1, literal(b"x-a", b"a" * 1000)) * 64)


HTTP2: dict[str, Callable[[], Iterator[bytes]]] = {
    "pings": lambda: forever(frame(PING, 0, 0, b"12345678") * 1000),
    "settings": lambda: forever(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)) * 1000),
    "empty settings": lambda: forever(frame(SETTINGS, 0, 0) * 1000),
    "tables of other sizes": lambda: forever(
        frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 0)) + frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 2**31))
    ),
    "window updates": lambda: forever(frame(WINDOW, 0, 0, struct.pack(">I", 1)) * 1000),
    "a head without an end": long_head,
    "empty continuations": lambda: iter(
        [frame(HEADERS, 0, 1, call_head()), *[frame(CONTINUATION, 0, 1) * 1000] * 1000]
    ),
    "streams that are reset": lambda: streams(
        lambda number: (
            frame(HEADERS, END_HEADERS, number, call_head()) + frame(RESET, 0, number, struct.pack(">I", 8))
        )
    ),
    "streams that never end": lambda: streams(lambda number: frame(HEADERS, END_HEADERS, number, call_head())),
    "empty data": lambda: iter(
        [frame(HEADERS, END_HEADERS, 1, call_head()), *[frame(DATA, 0, 1) * 1000] * 10_000]
    ),
    "heads that fill the table": lambda: streams(
        lambda number: frame(
            HEADERS, END_HEADERS | END_STREAM, number, call_head(PATH, kept(b"x-%d" % number, b"a" * 4000))
        )
    ),
    "a small head that stands for a large one": lambda: streams(
        # 4,000 bytes in the table, named a thousand times by one byte each.
        lambda number: frame(
            HEADERS, END_HEADERS | END_STREAM, number,
            call_head(PATH, kept(b"x", b"a" * 4000) if number == 1 else b"", b"\xbe" * 1000),
        )
    ),
    "paths that nobody serves": lambda: streams(
        lambda number: frame(HEADERS, END_HEADERS | END_STREAM, number, call_head(b"/%d/x" % number))
    ),
    "frames of no kind": lambda: forever(frame(200, 255, 0, b"x" * 16_000)),
    "goodbyes": lambda: forever(frame(GOAWAY, 0, 0, bytes(8)) * 1000),
    "no frames": lambda: forever(b"\xff" * 65_536),
}  # fmt: skip


def protocol_attempts() -> Iterator[Attempt]:
    """On the gateway of all others."""
    for kind, make in HTTP2.items():
        yield Attempt(f"http2 flood: {kind}", flood(make))
    for kind, begin in HTTP1.items():
        for caller in ("", "attacker"):
            yield Attempt(f"http1: {kind}, {caller or 'no token'}", http1(begin, caller))


def http2_stage_attempts(stage: str) -> Iterator[Attempt]:
    for kind, make in HTTP2.items():
        yield Attempt(f"{stage} http2 flood: {kind}", flood(make))


def flood(make: Callable[[], Iterator[bytes]]) -> Attack:
    async def attack(victim: Victim) -> str:
        sent = await asyncio.gather(
            *[_flood(victim.address, make) for _ in range(NUM_CONNECTIONS)], return_exceptions=True
        )
        ends = [one if isinstance(one, str) else type(one).__name__ for one in sent]
        return ", ".join(sorted(ends))

    return attack


async def _flood(address: str, make: Callable[[], Iterator[bytes]]) -> str:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    until, num_bytes = time.monotonic() + FLOOD_S, 0
    # What is answered is thrown away.
    reading = asyncio.create_task(_drain(reader))
    try:
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
        for data in make():
            writer.write(data)
            num_bytes += len(data)
            left = until - time.monotonic()
            if num_bytes > FLOOD_BYTES or left < 0:
                return "sent all"
            async with asyncio.timeout(left + 0.1):
                await writer.drain()
            if reading.done():
                return "cut off"
            await asyncio.sleep(0)
        return "sent all"
    except TimeoutError:
        return "held up"
    except ConnectionError:
        return "cut off"
    finally:
        reading.cancel()
        writer.transport.abort()


async def _drain(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(65_536):
            pass


def parts(count: int) -> bytes:
    return b"".join(b'--b\r\ncontent-disposition: form-data; name="n%d"\r\n\r\nx\r\n' % i for i in range(count)) + b"--b--\r\n"  # fmt: skip


def bomb(num_bytes: int) -> bytes:
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=9) as file:
        for _ in range(num_bytes // MIB):
            file.write(bytes(MIB))
    return made.getvalue()


def posted(path: str, body: bytes, *headers: str) -> bytes:
    head = "".join(f"{one}\r\n" for one in (*headers, f"content-length: {len(body)}"))
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\nTOKEN{head}\r\n".encode() + body


JSON = "content-type: application/json"
FORM = "content-type: multipart/form-data; boundary=b"
HTTP1: dict[str, Callable[[], bytes]] = {
    "a header of 1 MiB": lambda: b"GET /runs HTTP/1.1\r\nhost: localhost\r\nTOKENx: " + b"a" * MIB + b"\r\n\r\n",
    "a million headers": lambda: b"GET /runs HTTP/1.1\r\nhost: localhost\r\nTOKEN" + b"x: a\r\n" * MIB + b"\r\n",
    "a path of 1 MiB": lambda: b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "100,000 requests in one write": lambda: b"GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n" * 100_000,
    "a million chunks of one byte": lambda: (
        f"POST /runs HTTP/1.1\r\nhost: localhost\r\nTOKEN{JSON}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        + b"1\r\nx\r\n" * MIB + b"0\r\n\r\n"
    ),
    "a chunk with a long extension": lambda: (
        f"POST /runs HTTP/1.1\r\nhost: localhost\r\nTOKEN{JSON}\r\ntransfer-encoding: chunked\r\n\r\n1;".encode()
        + b"a" * (8 * MIB)
    ),
    "gzip of 4 GiB": lambda: posted("/runs", bomb(4096 * MIB), JSON, "content-encoding: gzip"),
    "100,000 parts": lambda: posted("/v1/images/edits", parts(100_000), FORM),
    "a part with a header of 8 MiB": lambda: posted(
        "/v1/images/edits", b"--b\r\nx: " + b"a" * (8 * MIB) + b"\r\n\r\nx\r\n--b--\r\n", FORM
    ),
    "a part without an end": lambda: posted("/v1/images/edits", b"--b\r\n" + b"a" * (8 * MIB), FORM),
    "8 MiB of line ends": lambda: posted("/v1/images/edits", b"\r\n" * (4 * MIB), FORM),
    "a size that is negative": lambda: b"POST /runs HTTP/1.1\r\nhost: localhost\r\nTOKENcontent-length: -1\r\n\r\n",
    "two sizes": lambda: b"POST /runs HTTP/1.1\r\nhost: localhost\r\nTOKENcontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a size and chunks": lambda: b"POST /runs HTTP/1.1\r\nhost: localhost\r\nTOKENcontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
}  # fmt: skip


def http1(make: Callable[[], bytes], caller: str) -> Attack:
    async def attack(victim: Victim) -> str:
        token = f"authorization: Bearer {victim.tokens[caller]}\r\n" if caller else ""
        data = (await asyncio.to_thread(make)).replace(b"TOKEN", token.encode(), 1)
        ends = await asyncio.gather(*[_send(victim.http, data) for _ in range(NUM_CONNECTIONS)])
        return ", ".join(sorted(ends))

    return attack


async def _send(address: str, data: bytes) -> str:
    """The status of the first answer."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            writer.write(data)
            reading = asyncio.ensure_future(reader.readline())
            draining = asyncio.ensure_future(writer.drain())
            await asyncio.wait([reading, draining], return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            line = await reading
        return line.decode("latin-1").strip()[9:40] or "closed"
    except TimeoutError:
        return "no answer"
    except ConnectionError:
        return "closed"
    finally:
        writer.transport.abort()
