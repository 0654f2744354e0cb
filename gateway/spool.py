"""Gathers a finished file that a worker sends in chunks on disk, and checks it."""

import mmap
import tempfile
from pathlib import Path

from services.images.codec import read_png_size


class Spool:
    """Use it for one attempt at a time; `close` deletes the file."""

    def __init__(self) -> None:
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None

    @property
    def path(self) -> Path | None:
        """Where the file is; None where nothing came in chunks."""
        return None if self._file is None else Path(self._file.name)

    def add(self, chunk: bytes) -> None:
        """Raises OSError where the disk is full."""
        if self._file is None:
            self._file = tempfile.NamedTemporaryFile(prefix="triptych-", suffix=".png")  # noqa: SIM115 - closed by close
        self._file.write(chunk)

    def read_size(self) -> tuple[int, int]:
        """Width and height of the PNG; raises ValueError where it is no whole one."""
        if self._file is None:
            raise ValueError("no PNG file")
        self._file.flush()
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            return read_png_size(view)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
