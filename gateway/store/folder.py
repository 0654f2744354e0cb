"""Images as files in a folder."""

import errno
import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from gateway.store.base import (
    OWNER_FILE,
    PART_BYTES,
    ImageCorrupted,
    InvalidStore,
    StoredImage,
    StoreFull,
    StoreUnavailable,
    ThreadedCalls,
    hash_of_file,
    not_found_error,
    verify_hash,
)
from services.errors import TriptychError
from services.private_files import make_private_folder, warn_if_shared
from triptych._files import read_file

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
# EFBIG: a limit on the size of files.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FolderStore:
    """Files at FOLDER/ab/cdef..., written to FOLDER/incoming under a name of their own, synced, then renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._threads = ThreadedCalls(f"the folder {folder}")
        # Device and inode of the folder that `check` found. A folder that replaces it has none of the images.
        self._identity: tuple[int, int] | None = None
        # The owner's mark at that time: a new folder may get the inode of one that was removed.
        self._owner: str | None = None
        self._held = -1

    def __str__(self) -> str:
        return str(self._folder)

    async def check(self) -> None:
        await self._threads.run(self._check)

    async def read_owner(self) -> str | None:
        return await self._threads.run(self._read_owner)

    async def write_owner(self, journal_id: str) -> None:
        try:
            await self._threads.run(lambda: self._write(self._folder / OWNER_FILE, journal_id.encode()))
        except OSError as error:
            raise _translate_error(error, self._folder) from error
        self._owner = journal_id

    async def hold(self, *, is_shared: bool) -> None:
        await self._threads.run(lambda: self._hold(is_shared=is_shared))

    async def put(self, data: bytes) -> str:
        return await self._threads.run(lambda: self._put(data))

    async def put_file(self, path: Path) -> str:
        return await self._threads.run(lambda: self._put(path))

    async def size(self, sha256: str) -> int:
        path = self._path(sha256)
        try:
            return await self._threads.run(lambda: path.stat().st_size)
        except FileNotFoundError:
            raise not_found_error(sha256) from None
        except OSError as error:
            raise _translate_error(error, path) from error

    async def read_parts(self, sha256: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        path = self._path(sha256)
        try:
            for offset in range(start, stop, PART_BYTES):
                length = min(PART_BYTES, stop - offset)
                yield await self._threads.run(functools.partial(_read_part, path, offset, length))
        except FileNotFoundError:
            raise not_found_error(sha256) from None
        except OSError as error:
            raise _translate_error(error, path) from error

    async def get(self, sha256: str) -> bytes:
        path = self._path(sha256)
        try:
            data = await self._threads.run(lambda: verify_hash(sha256, path.read_bytes()))
        except FileNotFoundError:
            try:
                await self._threads.run(self._check_identity)
            except OSError as error:
                raise _translate_error(error, self._folder) from None
            raise not_found_error(sha256) from None
        except ImageCorrupted:
            log.warning("%s is not what was written there; a picture that is put again replaces it", path)
            raise
        except OSError as error:
            raise _translate_error(error, path) from error
        return data

    async def delete(self, sha256: str, *, put_before: float | None = None) -> None:
        path = self._path(sha256)
        await self._threads.run(lambda: _delete(path, put_before))

    async def iterate(self) -> AsyncGenerator[StoredImage]:
        for first_byte in range(256):
            folder = self._folder / f"{first_byte:02x}"
            for stored in await self._threads.run(lambda folder=folder: list(_stored_in(folder))):  # type: ignore[misc]  # a lambda with a default
                yield stored
        await self._threads.run(self._drop_unfinished)

    async def close(self) -> None:
        self._threads.close()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise not_found_error(sha256)
        return self._folder / sha256[:2] / sha256[2:]

    def _check(self) -> None:
        try:
            # A folder that vanished is not recreated: its disk may be mounted again.
            self._check_identity()
            make_private_folder(self._incoming)
            with tempfile.TemporaryFile(dir=self._incoming) as probe:
                probe.write(b"a picture could stand here")
            status = self._folder.stat()
            if self._identity is None:
                warn_if_shared(self._folder, "pictures")
                self._identity = status.st_dev, status.st_ino
                self._owner = self._read_owner()
            self._check_identity()
            if self._owner is not None and self._read_owner() != self._owner:
                raise FileNotFoundError(errno.ENOENT, "the folder was replaced by another one")
        except OSError as error:
            raise InvalidStore(
                f"pictures cannot be kept in {self._folder}: {error.strerror or error}; name a folder that this user "
                "may write to with --store"
            ) from None

    def _put(self, data: bytes | Path) -> str:
        sha256 = hash_of_file(data) if isinstance(data, Path) else hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        try:
            self._check_identity()
            for folder in (self._incoming, path.parent):
                if not folder.is_dir():
                    make_private_folder(folder)
                    _sync(folder.parent)
            self._write(path, data)
            _sync(path.parent)
        except OSError as error:
            raise _translate_error(error, path) from error
        return sha256

    def _read_owner(self) -> str | None:
        try:
            return read_file(self._folder / OWNER_FILE).decode().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidStore(f"cannot read {self._folder / OWNER_FILE}: {error}") from None

    def _hold(self, *, is_shared: bool) -> None:
        try:
            self._held = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._held, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidStore(
                f"another gateway uses the store {self._folder}; stop that one, or name another folder with --store: "
                "gateways that share a store share a journal in PostgreSQL"
            ) from None
        except OSError as error:
            # Not every file system of a network has locks.
            log.info("%s cannot be locked: %s", self._folder, error.strerror)

    def _check_identity(self) -> None:
        """Raises FileNotFoundError when the folder was removed, or replaced by another one."""
        if self._identity is None:
            return
        status = self._folder.stat()
        if self._identity != (status.st_dev, status.st_ino):
            raise FileNotFoundError(errno.ENOENT, "the folder was replaced by another one")

    def _write(self, path: Path, data: bytes | Path) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._incoming, prefix=f"{path.name[:16]}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, PART_BYTES)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _drop_unfinished(self) -> None:
        # Temporary files of processes that were killed: no write takes an hour.
        for stray in self._incoming.glob("*"):
            _delete(stray, time.time() - 3600)


def _read_part(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _stored_in(folder: Path) -> Iterator[StoredImage]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _translate_error(error, folder) from error
    for entry in entries:
        if _SHA256.fullmatch(sha256 := folder.name + entry.name):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it was deleted meanwhile
                continue
            yield StoredImage(sha256, status.st_size, status.st_mtime)


def _delete(path: Path, put_before: float | None) -> None:
    try:
        if put_before is None or path.stat().st_mtime < put_before:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _translate_error(error, path) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translate_error(error: OSError, path: Path) -> TriptychError:
    log.error("%s: %s", path, error.strerror or error)
    if error.errno in _FULL:
        return StoreFull(
            "the store of pictures is full; free some space, or let the gateway keep less (--keep-bytes)"
        )
    return StoreUnavailable(f"the store of pictures cannot be used: {error.strerror or error}")
