"""Downloads large files: parallel ranges, resumable, verified, renamed when complete.

A download is FILE.part, beside a list of the ranges that have arrived; it becomes FILE when its bytes are known to be
right. Two processes that want the same file download it once.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from services.errors import ModelError
from services.weights.model_folder import write_atomically

log = logging.getLogger(__name__)

RANGE_BYTES = 16 * 2**20
NUM_PARALLEL = 4
# A range that gains nothing this many times in a row is given up; the pauses between add up to half a minute.
MAX_FAILURES = 6
FIRST_PAUSE_S = 0.5
# Left free on the disk, for everybody else's sake.
SPARE_BYTES = 64 * 2**20

Report = Callable[[int, int], None]  # bytes that are there, bytes in all


class ConnectionLost(Exception):
    """The transfer broke off; another try may go on from there."""


@runtime_checkable
class Remote(Protocol):
    """A file somewhere else."""

    name: str  # for people: where it is, without secrets
    num_bytes: int
    version: str  # another one when the content is another one
    sha256: str  # empty where the origin does not say

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of a range; raises ConnectionLost, or ModelError when the file is gone or has changed."""
        ...

    def close(self) -> None: ...


def download(
    remote: Remote, path: Path, *, sha256: str = "", report: Report = lambda done, total: None
) -> None:
    """Makes `path` the remote file's content; at once if it is there already.

    Raises ModelError: no room, a connection that stays broken, or bytes that are not what `sha256` or the remote say.
    What is good is kept in every case, and the next call goes on from it.
    """
    wanted = sha256 or remote.sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if path.exists():
            report(remote.num_bytes, remote.num_bytes)
            return
        part = _Part(path, remote)
        _check_room(path.parent, remote.num_bytes - part.num_done_bytes)
        with full_disk_errors(path.parent, f"{remote.name} has {remote.num_bytes / 2**30:.1f} GiB"):
            part.fetch_missing(report)
        if wanted and (found := sha256_of(part.path)) != wanted:
            part.discard()
            raise ModelError(
                f"{remote.name} is damaged: expected sha256 {wanted}, got {found}; nothing of it was kept. "
                "If it is in a cache of yours, send it there again with `triptych weights push --force`"
            )
        part.finish(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds `path` against other processes; logs when it has to wait for one."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        log.info("another process is at %s; waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Part:
    """The unfinished file, and which of its ranges are done."""

    def __init__(self, path: Path, remote: Remote) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._note = path.with_name(f"{path.name}.part.json")
        self._remote = remote
        self._num_ranges = -(-remote.num_bytes // RANGE_BYTES)
        self._done = self._read_note()
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        # Bytes of ranges under way, for the report.
        self._under_way: dict[int, int] = {}

    @property
    def num_done_bytes(self) -> int:
        return sum(self._size(index) for index in self._done)

    def fetch_missing(self, report: Report) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        threads: list[threading.Thread] = []
        try:
            os.ftruncate(descriptor, self._remote.num_bytes)
            missing = [index for index in range(self._num_ranges) if index not in self._done]
            report(self.num_done_bytes, self._remote.num_bytes)
            threads += [
                threading.Thread(target=self._fetch_all, args=(descriptor, missing, report), daemon=True)
                for _ in range(min(NUM_PARALLEL, len(missing)))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            # Ctrl-C: the process ends, and does not wait for threads that wait for a server. They need the descriptor.
            self._stop.set()
            if not threads:
                os.close(descriptor)
            raise
        os.close(descriptor)
        if self._errors:
            raise self._errors[0]

    def finish(self, path: Path) -> None:
        self.path.replace(path)
        self._note.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _fetch_all(self, descriptor: int, missing: list[int], report: Report) -> None:
        """Takes range after range; the first that cannot be had stops them all."""
        while not self._stop.is_set():
            try:
                index = missing.pop(0)
            except IndexError:
                return
            try:
                self._fetch(descriptor, index, report)
            except BaseException as error:  # noqa: BLE001 - raised where the file was asked for
                self._errors.append(error)
                self._stop.set()

    def _fetch(self, descriptor: int, index: int, report: Report) -> None:
        """One range, from where it broke off, until it is there or gains nothing more."""
        start = index * RANGE_BYTES
        stop = start + self._size(index)
        place, failures = start, 0
        while place < stop and not self._stop.is_set():
            before = place
            try:
                for piece in self._remote.read(place, stop):
                    os.pwrite(descriptor, piece[: stop - place], place)
                    place = min(place + len(piece), stop)
                    self._tell(index, place - start, report)
                    if self._stop.is_set():
                        return
            except ConnectionLost as error:
                failures = 0 if place > before else failures + 1
                if failures == MAX_FAILURES:
                    raise ModelError(
                        f"{self._remote.name}: {error}; what has arrived is kept, run the command again to go on"
                    ) from None
                log.info("%s: %s; going on from byte %d", self._remote.name, error, place)
                self._stop.wait(FIRST_PAUSE_S * 2**failures / 2)
            else:
                if place < stop and place == before:
                    raise ModelError(
                        f"{self._remote.name} ends at byte {place}, expected {self._remote.num_bytes}"
                    )
        if place == stop:
            # On the disk before it is noted: a note that survives a power cut must not promise what did not.
            os.fdatasync(descriptor)
            with self._mutex:
                self._done.add(index)
                self._under_way.pop(index, None)
                self._write_note()

    def _tell(self, index: int, num_bytes: int, report: Report) -> None:
        with self._mutex:
            self._under_way[index] = num_bytes
            done = self.num_done_bytes + sum(self._under_way.values())
        report(done, self._remote.num_bytes)

    def _size(self, index: int) -> int:
        return min(RANGE_BYTES, self._remote.num_bytes - index * RANGE_BYTES)

    def _read_note(self) -> set[int]:
        try:
            note = json.loads(self._note.read_text("utf-8"))
            if (note["version"], note["num_bytes"]) == (self._remote.version, self._remote.num_bytes):
                return {index for index in note["done"] if 0 <= index < self._num_ranges}
            log.info("%s has changed since the download began; starting anew", self._remote.name)
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            pass
        self.discard()
        return set()

    def _write_note(self) -> None:
        note = {
            "version": self._remote.version,
            "num_bytes": self._remote.num_bytes,
            "done": sorted(self._done),
        }
        write_atomically(self._note, json.dumps(note).encode())


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        raise ModelError(
            f"{folder} has {free / 2**30:.1f} GiB free and {num_bytes / 2**30:.1f} GiB are to come: make room there, or "
            "name another place with TRIPTYCH_CACHE"
        )


@contextmanager
def full_disk_errors(folder: Path, what: str) -> Iterator[None]:
    """Turns the errors of a disk without room into a ModelError that names `what` was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ModelError(
                f"the disk of {folder} is full: {what}; what has arrived is kept, make room and run the command again"
            ) from None
        raise


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ProgressMeter:
    """Adds up the reports of several files for one line of progress."""

    def __init__(self, total: int, show: Callable[[int, int], None]) -> None:
        self._total, self._show = total, show
        self._before = self._now = 0
        self.started = time.monotonic()

    def report(self, done: int, total: int) -> None:
        self._now = done
        self._show(self._before + done, max(self._total, self._before + total))

    def next_file(self) -> None:
        self._before += self._now
        self._now = 0
