"""Events of a request's images, and the bounded mailbox to their reader."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from services.errors import TriptychError


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as a PNG file: `png`, or, where that is large, an open `file` to be read from its beginning."""

    png: bytes
    width: int
    height: int
    file: BinaryIO | None = None

    def parts(self, part_bytes: int) -> Iterator[bytes]:
        """The file in parts of at most that size."""
        if self.file is None:
            for start in range(0, len(self.png), part_bytes):
                yield self.png[start : start + part_bytes]
            return
        self.file.seek(0)
        while part := self.file.read(part_bytes):
            yield part


@dataclass(frozen=True)
class Accepted:
    """The request stands in the queue; `position` jobs of anybody's go before its first; 0: it has begun."""

    position: int


@dataclass(frozen=True)
class Progress:
    index: int
    step: int
    num_steps: int


@dataclass(frozen=True)
class Preview:
    index: int
    step: int
    num_steps: int
    picture: EncodedPicture


@dataclass(frozen=True)
class Timing:
    """Seconds of one job: waiting for a slot, idle in it, in steps and decoding, making the PNG."""

    queue_s: float
    batch_wait_s: float
    compute_s: float
    encode_s: float


@dataclass(frozen=True)
class Finished:
    index: int
    picture: EncodedPicture
    timing: Timing


@dataclass(frozen=True)
class Failed:
    index: int
    error: TriptychError


Event = Accepted | Progress | Preview | Finished | Failed


class EventMailbox:
    """Queue of one request's events for its reader. Used on the event loop only.

    Its memory is bounded whatever the reader does: a newer progress, preview or queue position replaces the one that
    was not read yet, so it holds at most three entries for each image of the request.
    """

    def __init__(self, num_jobs: int) -> None:
        self._events: OrderedDict[tuple[type, int], Event] = OrderedDict()
        self._unfinished = num_jobs
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        index = -1 if isinstance(event, Accepted) else event.index
        if isinstance(event, Finished | Failed):
            # What was not read of an image's way is of no use once it is there.
            self._events.pop((Progress, index), None)
            self._events.pop((Preview, index), None)
        self._events[type(event), index] = event
        self._arrived.set()

    async def events(self) -> AsyncIterator[Event]:
        """Ends after the last image has finished or failed."""
        while self._unfinished:
            await self._arrived.wait()
            while self._events:
                _, event = self._events.popitem(last=False)
                self._unfinished -= isinstance(event, Finished | Failed)
                yield event
            self._arrived.clear()
