"""File responses: whole files, ranges (Range, If-Range) and 304.

RFC 9110, sections 13 and 14. Several ranges at once are answered with the whole file, as the RFC allows.
"""

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.http.errors import HttpError

MAX_FILE_NAME_CHARS = 120
_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


def file_response(
    request: Request, data: bytes | range, media_type: str, *, etag: str, headers: Mapping[str, str]
) -> Response:
    """`etag` names the bytes; a range in their place gives the headers alone. Raises HttpError (416) for a range that lies beyond the file."""
    headers = {**headers, "etag": f'"{etag}"', "accept-ranges": "bytes"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if headers["etag"] in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    part = _part(request, headers["etag"], len(data))
    status = 200
    if part is not None:
        status = 206
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(data)}"
        data = data[part.start : part.stop]
    return Response(data if isinstance(data, bytes) else b"", status, headers, media_type)


def large_file_response(
    request: Request,
    size: int,
    read: Callable[[int, int], AsyncGenerator[bytes]],
    media_type: str,
    *,
    etag: str,
    headers: Mapping[str, str],
) -> Response:
    """As `file_response`, of a file of `size` bytes that `read` gives in parts, from one byte to another."""
    answer = file_response(request, range(size), media_type, etag=etag, headers=headers)
    if answer.status_code not in (200, 206):
        return answer
    part = _part(request, f'"{etag}"', size) or range(size)
    answer.headers["content-length"] = str(len(part))
    if request.method == "HEAD":
        return answer
    return StreamingResponse(read(part.start, part.stop), answer.status_code, dict(answer.headers))


def _part(request: Request, etag: str, size: int) -> range | None:
    """The bytes that were asked for; None: all of them."""
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or not any(found.groups()) or request.method not in ("GET", "HEAD"):
        return None
    # What the caller has the beginning of may be another file by now. Files have no dates here.
    if request.headers.get("if-range", etag).strip() != etag:
        return None
    first, last = found.groups()
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise HttpError(
            416,
            "RANGE_NOT_SATISFIABLE",
            f"the file has {size} bytes, and the range {request.headers['range'][:60]!r} has none of them",
            {"content-range": f"bytes */{size}"},
        )
    return range(start, stop)


def attachment(name: str, *, kind: str = "attachment") -> str:
    """A header that saves an answer under that name (RFC 6266); programs without UTF-8 get an ASCII name."""
    name = name[:MAX_FILE_NAME_CHARS]
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", name).strip()
    return f"{kind}; filename=\"{plain or 'picture'}\"; filename*=UTF-8''{quote(name, safe='')}"
