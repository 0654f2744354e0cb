"""The interface of an image store, its errors, and what every store uses.

An image is addressed by the sha256 of its bytes. It is durable when `put` returns and verified when `get` returns.
Blocking calls run on threads of the store's own, so that a slow disk delays neither the event loop nor DNS lookups.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import grpc

from services.errors import NotFound, TriptychError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# In the store, beside the images: the id of their journal.
OWNER_FILE = "journal-id"

NUM_THREADS = 8
# Size of the parts that `read_parts` yields.
PART_BYTES = 2**20
# Longer calls fail: a network folder whose server is gone would block forever.
TIMEOUT_S = 60.0


class StoreFull(TriptychError):
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STORE_FULL"
    retry_after_s = 30.0


class StoreUnavailable(TriptychError):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"
    retry_after_s = 5.0


class ImageExpired(NotFound):
    reason = "IMAGE_EXPIRED"


class ImageCorrupted(TriptychError):
    status = grpc.StatusCode.DATA_LOSS
    reason = "IMAGE_CORRUPTED"


class InvalidStore(TriptychError):
    """The address of a store, or what is there, cannot be used; the process does not start."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "BAD_STORE"


@dataclass(frozen=True)
class StoredImage:
    """An image in the store, without its bytes. `put_at`: when it was last put, in seconds since 1970."""

    sha256: str
    num_bytes: int
    put_at: float


class Store(Protocol):
    """Pictures by the sha256 of their bytes. All methods raise StoreUnavailable when the store does not answer."""

    async def check(self) -> None:
        """Checks at the start whether images can be stored here; raises InvalidStore with what to do."""
        ...

    async def read_owner(self) -> str | None:
        """The id of the journal whose images these are; None if none was written."""
        ...

    async def write_owner(self, journal_id: str) -> None: ...

    async def hold(self, *, is_shared: bool) -> None:
        """Keeps other gateways out until `close`, or those only that do not share. Raises InvalidStore.

        Two gateways with a journal each, such as a copy, would delete each other's images as those of no run. A bucket
        cannot be held.
        """
        ...

    async def put(self, data: bytes) -> str:
        """Stores the bytes durably and returns their sha256. If they are there, renews `put_at` only. Raises StoreFull."""
        ...

    async def put_file(self, path: Path) -> str:
        """As `put`, for a file that is not loaded into memory."""
        ...

    async def size(self, sha256: str) -> int:
        """How many bytes a picture has. Raises NotFound."""
        ...

    def read_parts(self, sha256: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        """Yields the bytes from `start` to `stop` in parts, without verifying the hash. Raises NotFound."""
        ...

    async def get(self, sha256: str) -> bytes:
        """Raises NotFound, or ImageCorrupted when these are not the bytes that were put."""
        ...

    async def delete(self, sha256: str, *, put_before: float | None = None) -> None:
        """Deletes an image, if it is there; with `put_before`, only if `put_at` is earlier."""
        ...

    def iterate(self) -> AsyncGenerator[StoredImage]:
        """All images, in any order."""
        ...

    async def close(self) -> None: ...


class ThreadedCalls:
    """Blocking calls beside the event loop, a bounded number at once."""

    def __init__(self, what: str, timeout_s: float = TIMEOUT_S) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="store")

    async def run(self, work: Callable[[], Result]) -> Result:
        """Raises StoreUnavailable after the timeout. The thread cannot be interrupted and ends by itself."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except TimeoutError:
            raise StoreUnavailable(f"{self._what} did not answer within {self._timeout_s:g} s") from None

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def hash_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_hash(sha256: str, data: bytes) -> bytes:
    """The data, if these are the bytes that the sha256 names; raises ImageCorrupted."""
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ImageCorrupted(
            f"the picture {sha256[:12]}… is damaged in the store: its {len(data)} bytes have the sha256 {found[:12]}…; "
            "make it again with the same seed"
        )
    return data


def not_found_error(sha256: str) -> ImageExpired:
    return ImageExpired(
        f"the picture {sha256[:64]!r} is not kept, or not any more; make it again with the same seed"
    )
