"""Where finished pictures are kept: by the sha256 of their bytes, in a folder (here) or a bucket (bucket.py).

A picture is durable when `put` returns and whole when `get` returns: what comes back is hashed again. Blocking work is
done on threads of the store's own, so that a slow disk holds up neither the event loop nor a name that is looked up.
It knows neither runs nor how long a picture is wanted.
"""

import asyncio
import errno
import hashlib
import logging
import os
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import grpc

from services.errors import NotFound, TriptychError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

NUM_THREADS = 8
# A disk that takes longer, such as a network folder whose server is gone, is an error and not a wait without end.
TIMEOUT_S = 60.0
# Pictures that were put or read last, in memory: children are made from them and watchers are shown them at once.
RECENT_BYTES = 64 * 2**20

_SHA256 = re.compile(r"[0-9a-f]{64}")
# The last one is what a limit on the size of files answers with.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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


class BadStore(TriptychError):
    """The address of a store, or what is there, cannot be used; the process does not start."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "BAD_STORE"


@dataclass(frozen=True)
class Stored:
    """A picture that is kept, without its bytes; `put_at` is the last time that it was put, in seconds since 1970."""

    sha256: str
    num_bytes: int
    put_at: float


class Store(Protocol):
    """Pictures by the sha256 of their bytes. All methods raise StoreUnavailable when the store does not answer."""

    async def check(self) -> None:
        """Finds out now whether pictures can be kept here; raises BadStore that says what to do."""
        ...

    async def put(self, data: bytes) -> str:
        """Keeps the bytes, durably, and returns their sha256; a second time only renews their date. Raises StoreFull."""
        ...

    async def get(self, sha256: str) -> bytes:
        """Raises NotFound, or ImageCorrupted when these are not the bytes that were put."""
        ...

    async def delete(self, sha256: str, *, put_before: float | None = None) -> None:
        """Forgets a picture, or none; with `put_before` only where it has not been put since then."""
        ...

    def iterate(self) -> AsyncGenerator[Stored]:
        """Everything that is kept, in any order."""
        ...

    async def close(self) -> None: ...


def open_store(url: str) -> Store:
    """The store of a folder's path or "s3://BUCKET/PREFIX", with a memory for what was used last; raises BadStore."""
    if "://" not in url:
        return Remembering(FolderStore(Path(url).expanduser()))
    address = urlsplit(url)
    if address.scheme != "s3" or not address.netloc or address.query or address.fragment:
        raise BadStore(f"a store is a folder or s3://BUCKET/PREFIX, got {url!r}")
    from gateway.bucket import BucketStore  # boto3 takes a third of a second to import

    return Remembering(BucketStore(address.netloc, address.path.strip("/")))


class Threads:
    """Blocking calls beside the event loop, a bounded number at once."""

    def __init__(self, what: str, timeout_s: float = TIMEOUT_S) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="store")

    async def run(self, work: Callable[[], Result]) -> Result:
        """Raises StoreUnavailable when the work takes too long; it is then left to end by itself."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except TimeoutError:
            raise StoreUnavailable(f"{self._what} did not answer within {self._timeout_s:g} s") from None

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class FolderStore:
    """Files at FOLDER/ab/cdef..., written to FOLDER/incoming under a name of their own, synced, then renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._threads = Threads(f"the folder {folder}")

    def __str__(self) -> str:
        return str(self._folder)

    async def check(self) -> None:
        await self._threads.run(self._check)

    async def put(self, data: bytes) -> str:
        return await self._threads.run(lambda: self._put(data))

    async def get(self, sha256: str) -> bytes:
        path = self._path(sha256)
        try:
            data = await self._threads.run(lambda: verified(sha256, path.read_bytes()))
        except FileNotFoundError:
            raise missing(sha256) from None
        except ImageCorrupted:
            log.warning("%s is not what was written there; a picture that is put again replaces it", path)
            raise
        except OSError as error:
            raise _explain(error, path) from error
        return data

    async def delete(self, sha256: str, *, put_before: float | None = None) -> None:
        path = self._path(sha256)
        await self._threads.run(lambda: _delete(path, put_before))

    async def iterate(self) -> AsyncGenerator[Stored]:
        for place in range(256):
            folder = self._folder / f"{place:02x}"
            for stored in await self._threads.run(lambda folder=folder: list(_stored_in(folder))):  # type: ignore[misc]  # a lambda with a default
                yield stored
        await self._threads.run(self._drop_unfinished)

    async def close(self) -> None:
        self._threads.close()

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise missing(sha256)
        return self._folder / sha256[:2] / sha256[2:]

    def _check(self) -> None:
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._incoming) as probe:
                probe.write(b"a picture could stand here")
        except OSError as error:
            raise BadStore(
                f"pictures cannot be kept in {self._folder}: {error.strerror or error}; name a folder that this user "
                "may write to with --store"
            ) from None

    def _put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        try:
            for folder in (self._incoming, path.parent):
                if not folder.is_dir():
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    _sync(folder.parent)
            self._write(path, data)
            _sync(path.parent)
        except OSError as error:
            raise _explain(error, path) from error
        return sha256

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._incoming, prefix=f"{path.name[:16]}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _drop_unfinished(self) -> None:
        # What a process that was killed while it wrote has left; nobody writes one picture for an hour.
        for stray in self._incoming.glob("*"):
            _delete(stray, time.time() - 3600)


class Remembering:
    """A store in front of which the pictures that were used last are kept in memory."""

    def __init__(self, store: Store, max_bytes: int = RECENT_BYTES) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._num_bytes = 0

    def __str__(self) -> str:
        return str(self._store)

    async def check(self) -> None:
        await self._store.check()

    async def put(self, data: bytes) -> str:
        sha256 = await self._store.put(data)
        self._remember(sha256, data)
        return sha256

    async def get(self, sha256: str) -> bytes:
        if (data := self._recent.get(sha256)) is not None:
            self._recent.move_to_end(sha256)
            return data
        data = await self._store.get(sha256)
        self._remember(sha256, data)
        return data

    async def delete(self, sha256: str, *, put_before: float | None = None) -> None:
        self._forget(sha256)
        await self._store.delete(sha256, put_before=put_before)

    def iterate(self) -> AsyncGenerator[Stored]:
        return self._store.iterate()

    async def close(self) -> None:
        self._recent.clear()
        await self._store.close()

    def _remember(self, sha256: str, data: bytes) -> None:
        self._forget(sha256)
        self._recent[sha256] = data
        self._num_bytes += len(data)
        while self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._recent)))

    def _forget(self, sha256: str) -> None:
        self._num_bytes -= len(self._recent.pop(sha256, b""))


def verified(sha256: str, data: bytes) -> bytes:
    """The data, if these are the bytes that the sha256 names; raises ImageCorrupted."""
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ImageCorrupted(
            f"the picture {sha256[:12]}… is damaged in the store: its {len(data)} bytes have the sha256 {found[:12]}…; "
            "make it again with the same seed"
        )
    return data


def missing(sha256: str) -> ImageExpired:
    return ImageExpired(
        f"the picture {sha256[:64]!r} is not kept, or not any more; make it again with the same seed"
    )


def _stored_in(folder: Path) -> Iterator[Stored]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _explain(error, folder) from error
    for entry in entries:
        if _SHA256.fullmatch(sha256 := folder.name + entry.name):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it was deleted meanwhile
                continue
            yield Stored(sha256, status.st_size, status.st_mtime)


def _delete(path: Path, put_before: float | None) -> None:
    try:
        if put_before is None or path.stat().st_mtime < put_before:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _explain(error, path) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, path: Path) -> TriptychError:
    log.error("%s: %s", path, error.strerror or error)
    if error.errno in _FULL:
        return StoreFull(
            "the store of pictures is full; free some space, or let the gateway keep less (--keep-bytes)"
        )
    return StoreUnavailable(f"the store of pictures cannot be used: {error.strerror or error}")
