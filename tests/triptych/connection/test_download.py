"""Files in pieces: what was cut off is gone on with, and what is damaged is refused."""

import hashlib

import grpc
import pytest

from triptych._download import download, download_to
from triptych._reconnect import Backoff, RetryState
from triptych.client import DamagedImage, Unreachable
from triptych.errors import ErrorDetails
from triptych.v1.pipeline_pb2 import DownloadImageResponse

FILE = bytes(range(200))
SHA256 = hashlib.sha256(FILE).hexdigest()


class Sender:
    """Sends the file 50 bytes at a time; after so many messages each of the first calls breaks."""

    def __init__(self, *breaks_after: int, error: type = Unreachable, sha256: str = SHA256) -> None:
        self.breaks_after = list(breaks_after)
        self.error = error
        self.sha256 = sha256
        self.offsets: list[int] = []

    async def read_from(self, offset):
        self.offsets.append(offset)
        left = self.breaks_after.pop(0) if self.breaks_after else len(FILE)
        for start in range(offset, len(FILE), 50):
            if not left:
                raise self.error("gone", grpc.StatusCode.UNAVAILABLE, ErrorDetails())
            left -= 1
            yield DownloadImageResponse(chunk=FILE[start : start + 50], sha256=self.sha256)


def impatient(**backoff):
    return RetryState(Backoff(**({"first_s": 0, "longest_s": 0} | backoff)))


def downloaded(sender, **backoff):
    return download("runs/1/images/generate-0", sender.read_from, impatient(**backoff))


async def test_a_download_goes_on_where_it_broke():
    sender = Sender(1, 0, 2)
    assert await downloaded(sender) == FILE
    assert sender.offsets == [0, 50, 50, 150]


async def test_a_file_that_is_not_what_was_meant_is_refused():
    with pytest.raises(DamagedImage, match="generate-0: expected sha256 abc"):
        await downloaded(Sender(sha256="abc"))


async def test_a_file_without_a_checksum_is_refused():
    with pytest.raises(DamagedImage, match="expected sha256 in the first message"):
        await downloaded(Sender(sha256=""))


async def test_without_patience_the_break_is_raised():
    with pytest.raises(Unreachable):
        await downloaded(Sender(1), give_up_after_s=0)


async def test_a_download_into_a_file_goes_on_where_it_broke(tmp_path):
    sender = Sender(1, 0, 2)
    await download_to("runs/1/images/generate-0", sender.read_from, impatient(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == FILE
    assert sender.offsets == [0, 50, 50, 150]


async def test_of_a_damaged_download_no_file_is_left(tmp_path):
    with pytest.raises(DamagedImage):
        await download_to(
            "runs/1/images/generate-0", Sender(sha256="abc").read_from, impatient(), tmp_path / "a.png"
        )
    assert not list(tmp_path.iterdir())
