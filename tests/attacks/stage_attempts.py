"""What is tried on a stage: every method with requests of every kind that was ever trouble, and pictures that are none."""

import struct
import zlib
from collections.abc import Callable, Iterator

from tests.attacks.attempts import MESSAGES, Attempt, calls, connections, field
from tests.attacks.victim import MIB

# As docker-compose.yml limits the containers.
MEMORY_BYTES = {"generator": 2048 * MIB, "refiner": 2048 * MIB, "upscaler": 1500 * MIB}
METHODS = {
    "upscaler": ("/triptych.v1.UpscalerService/Upscale", "/triptych.v1.UpscalerService/GetModel"),
    "refiner": ("/triptych.v1.RefinerService/Refine", "/triptych.v1.RefinerService/Rank"),
    "generator": ("/triptych.v1.GeneratorService/Generate", "/triptych.v1.GeneratorService/ReadPrompt"),
}


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever its data hold."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PICTURES: dict[str, Callable[[], bytes]] = {
    "a picture of nothing": lambda: png(64, 64),
    "a picture of four billion pixels": lambda: png(65_535, 65_535),
    "a picture of negative size": lambda: png(2**32 - 1, 1),
    "a picture of no width": lambda: png(0, 64),
    "a picture that unpacks to 256 MiB": lambda: png(256, 256, zlib.compress(bytes(256 * MIB), 9)),
    "a text chunk that unpacks to 256 MiB": lambda: png(
        8, 8, zlib.compress(bytes(200)), _chunk(b"zTXt", b"x\x00\x00" + zlib.compress(bytes(256 * MIB), 9))
    ),
    "truncated EXIF": lambda: png(8, 8, zlib.compress(bytes(200)), _chunk(b"eXIf", b"MM\x00*\x00\x00\x00\x08\xff\xff")),
    "a JPEG cut off": lambda: b"\xff\xd8\xff\xe1\xff\xffExif\x00\x00MM",
    "a text": lambda: b"not a picture\x00" * 1000,
}  # fmt: skip


def stage_attempts(stage: str) -> Iterator[Attempt]:
    for method in METHODS[stage]:
        for kind, message in MESSAGES.items():
            yield Attempt(f"{stage} {method.rpartition('/')[2]}: {kind}", calls(method, message, "", 4))
    picture_method = METHODS[stage][0]
    for kind, data in PICTURES.items() if stage != "generator" else ():
        # Field 1 and its picture are in the same place for both stages.
        yield Attempt(
            f"{stage} picture: {kind}", calls(picture_method, lambda data=data: _with_picture(data()), "", 2)
        )
    yield Attempt(
        f"{stage}: 100 at once of 31 MiB", calls(picture_method, MESSAGES["31 MiB of text"], "", 100)
    )
    yield Attempt(f"{stage}: 600 silent connections", connections("address", b"", 600))


def _with_picture(data: bytes) -> bytes:
    image = field(1, data)
    return field(1, image) + field(2, image) + field(3, image)
