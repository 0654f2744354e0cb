"""Files: reading what a user names, atomic writes for other processes, and stamps that change with a file."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Of one version of a file.
Stamp = tuple[int, int, int]


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size


KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def check_is_file(path: Path) -> None:
    """Raises OSError for what is no regular file: to open a pipe waits for its writer, a device has no end."""
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        reason = f"it is {KINDS.get(kind, 'something else')}, and no file"
        raise OSError(errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL, reason, str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; raises OSError, also for a pipe, socket, device or folder."""
    check_is_file(path)
    # Not to wait, should a pipe have taken its place since.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


@contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file that replaces `path` when all of it is written and synced; after an error `path` is as it was.

    Readers see the old file or the new one. `mode`: its permissions; None: those of any new file.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is None:
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        # A temporary file is for its owner alone.
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
