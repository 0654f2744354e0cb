"""Reads request bodies, with limits on size and time."""

import asyncio
import json
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.context import api_of, caller_of
from gateway.http.errors import HttpError
from services.errors import InvalidRequest
from services.serving.limits.request_budget import Reservation

MAX_FILES = 17
MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 2**10
# Below it nobody waits.
SMALL_BYTES = 64 * 2**10
# Of a body in JSON: a run of 64 pictures, each with settings of its own, has about 2,000.
MAX_JSON_VALUES = 50_000
# In the scope of a request.
RESERVATIONS = "triptych.reservations"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Larger texts are parsed beside the event loop, on which all other calls wait.
PARSED_IN_PLACE_BYTES = 64 * 2**10


async def read_json(request: Request, max_bytes: int, *, any_type: bool = False) -> Any:
    """The JSON of a body. Raises HttpError for another content type, unless any will do, and beyond the bounds.

    A page of another site can send a text without asking first, but not JSON: the browser would ask us, and be refused.
    """
    kind = content_type_of(request)
    if not any_type and kind != "application/json":
        raise HttpError(
            415, "UNSUPPORTED_MEDIA_TYPE", f"expected content-type application/json, got {kind!r}"
        )
    data = bytearray()
    async with _reserved(request, max_bytes) as reservation:
        async for part in _bounded(request, max_bytes):
            data += part
        reservation.shrink(len(data))
    try:
        if len(data) > PARSED_IN_PLACE_BYTES:
            return await asyncio.to_thread(parse_json, data)
        return parse_json(data)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "INVALID_ARGUMENT", f"the body must be JSON: {error}") from None


def content_type_of(request: Request) -> str:
    """Of the body, without parameters: "application/json"."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_json(data: bytes | bytearray) -> Any:
    """Parses a text in JSON; raises ValueError or RecursionError, also for half a surrogate pair.

    Refused before any object is made of it: a text of more values than any request has.
    """
    # Those inside of texts count, too: pictures in base64 have none, and prompts few.
    if sum(data.count(mark) for mark in b",[{") > MAX_JSON_VALUES:
        raise ValueError(f"it must have at most {MAX_JSON_VALUES} values")
    # Editors on Windows begin a file with a mark.
    text = data.decode("utf-8-sig")
    value = json.loads(text)
    # JSON can name halves of characters, which neither a message nor a file can hold.
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(
                r"a text has half of a surrogate pair, such as \ud83d, which is what a cut emoji leaves"
            ) from None
    return value


async def read_form(request: Request, max_bytes: int) -> FormData:
    """The fields and files of a multipart body; the caller must close it."""
    kind = content_type_of(request)
    if kind != "multipart/form-data":
        raise HttpError(
            415, "UNSUPPORTED_MEDIA_TYPE", f"expected content-type multipart/form-data, got {kind!r}"
        )
    parser = MultiPartParser(
        request.headers,
        _bounded(request, max_bytes),
        max_files=MAX_FILES,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        async with _reserved(request, max_bytes):
            return await parser.parse()
    except MultiPartException as error:
        raise HttpError(400, "INVALID_ARGUMENT", f"the body is no multipart form: {error.message}") from None


@asynccontextmanager
async def _reserved(request: Request, max_bytes: int) -> AsyncIterator[Reservation]:
    """Memory for the body, held until the answer begins: it is among what all callers together may send.

    Raises RateLimited, and whatever `caller_of` does: nobody sends a body before it is known who it is.
    """
    caller = caller_of(request)
    declared = request.headers.get("content-length", "")
    # The size of a compressed or chunked body is not known in advance.
    is_known = declared.isdecimal() and "content-encoding" not in request.headers
    num_bytes = min(int(declared), max_bytes) if is_known else max_bytes
    reservation = await api_of(request).budget.reserve(
        caller.name, num_bytes if num_bytes > SMALL_BYTES else 0
    )
    request.scope.setdefault(RESERVATIONS, []).append(reservation)
    try:
        yield reservation
    except BaseException:
        reservation.release()
        raise


class ReservationMiddleware:
    """Gives back what bodies have reserved when the answer begins: what was asked for is then done, or is kept as a run."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        def release() -> None:
            for reservation in scope.get(RESERVATIONS, ()):
                reservation.release()

        async def send_and_release(message: Message) -> None:
            release()
            await send(message)

        try:
            await self._app(scope, receive, send_and_release)
        finally:
            release()


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes]:
    """The parts of a body; raises HttpError where it is too large, too slow, or ends too soon."""
    stream, timeout_s = request.stream(), api_of(request).limits.body_timeout_s
    too_large = HttpError(413, "BODY_TOO_LARGE", f"the body must have at most {max_bytes} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    decoder = _decoder_of(request)
    num_bytes = num_decoded = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in stream:
                num_bytes += len(part)
                if num_bytes > max_bytes:
                    raise too_large
                if decoder is not None:
                    # Never more than fits: a small body may stand for gigabytes.
                    part = decoder.decompress(decoder.unconsumed_tail + part, max_bytes - num_decoded + 1)
                num_decoded += len(part)
                if num_decoded > max_bytes:
                    raise too_large
                yield part
        if decoder is not None and not decoder.eof:
            raise HttpError(400, "BODY_CUT_SHORT", "the compressed body ended before it was whole")
    except zlib.error as error:
        raise HttpError(
            400, "INVALID_ARGUMENT", f"the body is not in its content-encoding: {error}"
        ) from None
    except TimeoutError:
        raise HttpError(408, "BODY_TOO_SLOW", f"the body must be here within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise HttpError(400, "BODY_CUT_SHORT", "the body ended before it was whole") from None


def _decoder_of(request: Request) -> Any:
    """What decompresses the body; None where it is as it is. Raises HttpError for an encoding that is not known."""
    encodings = [one.strip().lower() for one in request.headers.get("content-encoding", "").split(",")]
    encodings = [one for one in encodings if one not in ("", "identity")]
    if not encodings:
        return None
    if encodings in (["gzip"], ["x-gzip"]):
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    if encodings == ["deflate"]:
        return zlib.decompressobj()
    raise HttpError(
        415,
        "UNSUPPORTED_MEDIA_TYPE",
        f"expected content-encoding gzip or deflate, or none, got {', '.join(encodings)[:40]!r}",
        {"accept-encoding": "gzip, deflate"},
    )


def query_integer(request: Request, name: str, default: int = 0) -> int:
    """A whole number of the query; raises InvalidRequest."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.removeprefix("-").isdecimal() or len(text) > 19:
        raise InvalidRequest(name, f"must be a whole number, got {text[:40]!r}")
    return int(text)
