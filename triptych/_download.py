"""Downloads an image's file in chunks, with resume, and checks its sha256."""

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc

from triptych._files import replacing
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
    with replacing(path) as file:
        await _copy(name, read_from, persistence, file.write)


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
