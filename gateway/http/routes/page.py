"""Routes of the web page: index.html, scripts and styles.

The files are read once, when the process starts, so that a page never loads modules of two versions.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

FOLDER = Path(__file__).parents[2] / "web"
# Set here: a machine's own list of types for .js may keep a browser from running it.
MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    data: bytes
    compressed: bytes
    media_type: str
    etag: str

    def answer(self, request: Request, vary: str = "") -> Response:
        """The file, or 304. `no-cache` makes browsers revalidate each file, so all of them are of one version."""
        headers = {
            "etag": self.etag,
            "cache-control": "no-cache",
            "vary": f"{vary}, Accept-Encoding" if vary else "Accept-Encoding",
        }
        known = request.headers.get("if-none-match", "").split(",")
        if self.etag in (tag.strip().removeprefix("W/") for tag in known):
            return Response(status_code=304, headers=headers)
        if _accepts_gzip(request.headers.get("accept-encoding", "")):
            headers["content-encoding"] = "gzip"
            return Response(self.compressed, headers=headers, media_type=self.media_type)
        return Response(self.data, headers=headers, media_type=self.media_type)


def _accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header has gzip, and does not refuse it by `q=0`."""
    for part in header.split(","):
        name, _, quality = part.replace(" ", "").partition(";q=")
        if name.lower() in ("gzip", "*"):
            return quality.strip("0.") != "" or not quality
    return False


def read_page(folder: Path) -> Mapping[str, PageFile]:
    """The page's files by their names."""
    files = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in MEDIA_TYPES:
            data = path.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            compressed = gzip.compress(data, compresslevel=9, mtime=0)
            files[path.name] = PageFile(data, compressed, MEDIA_TYPES[path.suffix], etag)
    return files


FILES = read_page(FOLDER)


async def home(request: Request) -> Response:
    """The page for clients that accept HTML; for programs the health check of dalle-playground's back end."""
    page = FILES.get("index.html")
    if page is not None and "text/html" in request.headers.get("accept", ""):
        return page.answer(request, vary="Accept")
    return Response(b'{"success":true}\n', media_type="application/json", headers={"vary": "Accept"})


async def page_file(request: Request) -> Response:
    file = FILES.get(request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    return file.answer(request)


routes = [
    Route("/", home, methods=["GET"]),
    Mount("/web", routes=[Route("/{name:path}", page_file, methods=["GET"])]),
]
