"""Downloads an image's file in chunks, with resume, and checks its sha256."""

import hashlib
from collections.abc import AsyncIterator, Callable

import grpc

from triptych._reconnect import RetryState
from triptych.errors import CallError, DamagedImage, ErrorDetails
from triptych.v1.pipeline_pb2 import DownloadImageResponse


async def download(
    name: str, read_from: Callable[[int], AsyncIterator[DownloadImageResponse]], persistence: RetryState
) -> bytes:
    """`read_from` reads the parts from an offset on. Raises DamagedImage when they are not what was meant to come."""
    data, sha256 = bytearray(), ""
    while True:
        try:
            async for part in read_from(len(data)):
                sha256 = sha256 or part.sha256
                data += part.chunk
                persistence.succeeded()
            break
        except CallError as error:
            await persistence.wait_after(error)
    if (came := hashlib.sha256(data).hexdigest()) != sha256:
        raise DamagedImage(
            f"{name}: expected sha256 {sha256 or 'in the first message'}, got {came} of {len(data)} bytes; "
            "download it again",
            grpc.StatusCode.DATA_LOSS,
            ErrorDetails(),
        )
    return bytes(data)
