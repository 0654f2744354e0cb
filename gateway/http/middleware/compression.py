"""Compresses JSON and the page's files; never images or server-sent events."""

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

# Below it a compressed answer is not smaller by a packet.
MIN_BYTES = 1_000
# The page's files are compressed once when the process starts; other answers with little effort each time.
LEVEL = 5


def compressing(app: ASGIApp) -> ASGIApp:
    """The application with answers in gzip for those who accept it."""
    return GZipMiddleware(app, minimum_size=MIN_BYTES, compresslevel=LEVEL)
