"""The lock of a SQLite journal: one process at a time, by inode, so that links to the file are the same journal.

What is written to a file after it was removed or replaced is lost, so every commit checks that the path still names it.
"""

import fcntl
import os
import stat
from pathlib import Path

from services.errors import TriptychError
from services.private_files import make_private_file, make_private_folder


class InvalidJournal(TriptychError):
    """The address of a journal, or what is there, cannot be used; the process does not start."""

    reason = "BAD_JOURNAL"


class JournalFile:
    """Holds the file for this process until `close`, however the process ends. Raises InvalidJournal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: list[int] = []
        try:
            make_private_folder(path.parent)
            # Earlier releases lock FILE.lock. Both are locked, so that old and new gateways exclude each other.
            for name in (path.with_name(path.name + ".lock"), path):
                self._held.append(_open(name))
            status = os.fstat(self._held[-1])
        except OSError as error:
            self.close()
            raise InvalidJournal(
                f"the journal {path} cannot be written: {error.strerror or error}; name a file in a folder that this "
                "user may write to with --journal"
            ) from None
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise InvalidJournal(f"the journal {path} is no file; name another one with --journal")
        self._identity = status.st_dev, status.st_ino
        try:
            for descriptor in self._held:
                # SQLite uses POSIX locks, which do not interact with flock.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise InvalidJournal(
                f"another gateway uses the journal {path}, or another name of the same file; stop that one, or name "
                "another file with --journal: several gateways share a journal in PostgreSQL"
            ) from None
        for suffix in ("", "-wal", "-shm", ".lock"):
            make_private_file(path.with_name(path.name + suffix))

    def check(self) -> None:
        """Raises FileNotFoundError when the file that was opened is not at its path any more."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise FileNotFoundError(f"the journal {self.path} is gone: {error.strerror}") from None
        if (status.st_dev, status.st_ino) != self._identity:
            raise FileNotFoundError(f"the journal {self.path} was replaced by another file")

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)
        self._held = []


def _open(path: Path) -> int:
    # Opening a named pipe would block.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
