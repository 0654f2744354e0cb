"""Creates folders and files that only their owner can read, whatever the umask is."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER_MODE = 0o700
FILE_MODE = 0o600
OTHERS = 0o077


def make_private_folder(folder: Path) -> None:
    """Creates the folder and the missing ones above it, each for its owner alone. Existing ones stay as they are."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    for path in reversed(missing):
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        path.chmod(FOLDER_MODE)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))


def create_private_file(path: Path, flags: int = os.O_WRONLY | os.O_CREAT) -> int:
    """Opens a file, which is then readable by its owner alone if we own it; returns its descriptor."""
    descriptor = os.open(path, flags, FILE_MODE)
    if os.fstat(descriptor).st_uid == os.getuid():
        os.fchmod(descriptor, FILE_MODE)
    return descriptor


def make_private_file(path: Path) -> None:
    """Takes the rights of others away from an existing file; warns if it belongs to another user."""
    try:
        status = path.stat()
        if status.st_mode & OTHERS:
            path.chmod(status.st_mode & 0o700)
            log.warning("%s could be read or written by others; it is for its owner alone now", path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("others can read or write %s, and it cannot be changed: %s", path, error.strerror)


def warn_if_shared(folder: Path, what: str) -> None:
    """Warns if others may read an existing folder: it may be shared on purpose, so it stays as it is."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return
    if mode & OTHERS:
        log.warning(
            "others on this machine can read the %s in %s (mode %03o); `chmod 700` it unless it is shared on purpose",
            what,
            folder,
            mode & 0o777,
        )
