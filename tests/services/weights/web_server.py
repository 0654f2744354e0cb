"""A web server on loopback that sends ranges of files, and cuts connections when it is asked to."""

import hashlib
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Site:
    """What is served, by path: bytes, or a file's. Bodies of the next `num_cuts` answers end in the middle.

    With `stall_at`, a body stops before its byte of that number, until `resumed` is set.
    """

    files: Mapping[str, bytes | Path]
    url: str = ""
    num_cuts: int = 0
    status: int = 0
    sends_ranges: bool = True
    ranges: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stall_at: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    resumed: threading.Event = field(default_factory=threading.Event)

    def takes_a_cut(self) -> bool:
        with self.lock:
            self.num_cuts -= 1
            return self.num_cuts >= 0


def size_of(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def etag_of(data: bytes | Path) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else bytes(data)).hexdigest()[:16]


def cut_out(data: bytes | Path, start: int, stop: int) -> bytes:
    if isinstance(data, bytes):
        return data[start:stop]
    with data.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


@contextmanager
def serving(files: Mapping[str, bytes | Path]) -> Iterator[Site]:
    site = Site(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            data = site.files.get(self.path.lstrip("/"))
            if site.status or data is None:
                self.send_response(site.status or 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, stop, is_range = 0, size_of(data), False
            if site.sends_ranges and (
                asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            ):
                start, stop, is_range = int(asked[1]), int(asked[2]) + 1, True
            etag = f'"{etag_of(data)}"'
            if self.headers.get("If-Range", etag) != etag:
                start, stop, is_range = 0, size_of(data), False
            body = cut_out(data, start, stop)
            self.send_response(206 if is_range else 200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size_of(data)}")
            self.end_headers()
            if len(body) > 1:
                with site.lock:
                    site.ranges.append((start, stop))
                if site.takes_a_cut():
                    body = body[: len(body) // 2]
                    self.close_connection = True
            if place := site.stall_at:
                self.wfile.write(body[:place])
                body = body[place:]
                if body:
                    self.wfile.flush()
                    site.stalled.set()
                    site.resumed.wait()
            with suppress(ConnectionError):  # it may have gone while it was kept waiting
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # a client that was stopped
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        site.resumed.set()
        server.shutdown()
        thread.join()
        server.server_close()
