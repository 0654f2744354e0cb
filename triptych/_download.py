"""Downloads an image's file in chunks, with resume, and checks its sha256."""

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import grpc

from triptych._reconnect import RetryState
from triptych.errors import CallError, DamagedImage, ErrorDetails
from triptych.v1.pipeline_pb2 import DownloadImageResponse

ReadFrom = Callable[[int], AsyncIterator[DownloadImageResponse]]


async def download(name: str, read_from: ReadFrom, persistence: RetryState) -> bytes:
    """The whole file. `read_from` reads the chunks from an offset on. Raises DamagedImage if its sha256 is another."""
    data = bytearray()
    await _copy(name, read_from, persistence, data.extend)
    return bytes(data)


async def download_to(name: str, read_from: ReadFrom, persistence: RetryState, path: Path) -> None:
    """As `download`, into a file; a chunk at a time is in memory. `path` appears when the file is complete."""
    with _complete_file(path) as file:
        await _copy(name, read_from, persistence, file.write)


@contextmanager
def _complete_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` when all of it is written, and not at all after an error."""
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            yield file
        # A temporary file is for its owner alone; this one is as any other that is written here.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


async def _copy(
    name: str, read_from: ReadFrom, persistence: RetryState, write: Callable[[bytes], object]
) -> None:
    num_bytes, hashed, sha256 = 0, hashlib.sha256(), ""
    while True:
        try:
            async for response in read_from(num_bytes):
                sha256 = sha256 or response.sha256
                num_bytes += len(response.chunk)
                hashed.update(response.chunk)
                write(response.chunk)
                persistence.succeeded()
            break
        except CallError as error:
            await persistence.wait_after(error)
    if hashed.hexdigest() != sha256:
        raise DamagedImage(
            f"{name}: expected sha256 {sha256 or 'in the first message'}, got {hashed.hexdigest()} of {num_bytes} "
            "bytes; download it again",
            grpc.StatusCode.DATA_LOSS,
            ErrorDetails(),
        )
