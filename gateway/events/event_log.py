"""The event log of a run: gapless sequence numbers, any number of subscribers.

Readers see an event only after it is committed, so it is never taken back. Readers
hold a place in the log and no queue of their own, so a slow one costs no memory: of each unfinished picture only the
newest preview is kept, and none once it is finished; everything else stays.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from triptych.v1.pipeline_pb2 import Event
from triptych.v1.stage_pb2 import Stage

# Of one picture, while they wait to be written down: where that takes long the newest are worth the most.
MAX_PREVIEWS = 4


class EventLog:
    """`write` is given every new event; once it is written down, `publish` shows it."""

    def __init__(self, write: Callable[[Event], None], events: Iterable[Event] = ()) -> None:
        # Event i has sequence i + 1; None is a preview that a newer one, or the finished picture, has replaced.
        self._events: list[Event | None] = []
        for event in events:
            # What is written down of a preview is its number alone.
            self._events += [None] * (event.sequence - 1 - len(self._events))
            self._events.append(None if event.HasField("preview") else event)
        self._num_published = len(self._events)
        self._write = write
        # Places of previews that are kept, by picture, and of the pictures that are finished.
        self._previews: dict[tuple[Stage.ValueType, int], list[int]] = {}
        self._finished: set[tuple[Stage.ValueType, int]] = set()
        self._is_closed = False
        self._is_disowned = False
        self._grown = asyncio.Event()

    @property
    def last_sequence(self) -> int:
        return len(self._events)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def is_disowned(self) -> bool:
        return self._is_disowned

    @property
    def is_flushed(self) -> bool:
        """Whether all of it has been written down."""
        return self._num_published == len(self._events)

    def assign_sequence(self, event: Event) -> None:
        """Numbers and dates the event that is to be appended next."""
        event.sequence = len(self._events) + 1
        event.time.GetCurrentTime()

    def append(self, event: Event) -> None:
        """Has the event written down, with the next number."""
        assert not self._is_closed, "an event after the last one"  # noqa: S101 - our own bug
        if self._is_disowned:
            return
        if not event.sequence:
            self.assign_sequence(event)
        if event.HasField("preview"):
            offsets = self._previews.setdefault((event.preview.stage, event.preview.index), [])
            offsets.append(len(self._events))
            if len(offsets) > MAX_PREVIEWS:
                self._events[offsets.pop(0)] = None
        elif event.HasField("image_ready"):
            self._finished.add((event.image_ready.image.stage, event.image_ready.image.index))
        self._events.append(event)
        self._write(event)

    def publish(self, sequence: int) -> None:
        """The events up to that one are written down: readers see them."""
        seen, self._num_published = self._num_published, max(self._num_published, sequence)
        for key, offsets in list(self._previews.items()):
            # Those that readers could have seen before, where there is something newer now.
            while offsets and offsets[0] < seen and (key in self._finished or self._is_newer(offsets[1:])):
                self._events[offsets.pop(0)] = None
            if not offsets:
                del self._previews[key]
        self._notify()

    def close(self) -> None:
        """Ends the log: readers stop once they have had the last event."""
        self._is_closed = True
        self._previews.clear()
        self._notify()

    def reopen(self) -> None:
        """Takes back the end: there is more to tell."""
        self._is_closed = False

    def disown(self) -> None:
        """Somebody else writes the log from here on: readers stop where it stands, and what is appended is lost."""
        self._is_disowned = True
        self._notify()

    async def follow(self, after_sequence: int = 0) -> AsyncIterator[Event]:
        """Yields the kept events after that sequence number, then new ones as they come, until the log ends here."""
        offset = max(after_sequence, 0)
        while True:
            while offset < self._num_published:
                event = self._events[offset]
                offset += 1
                if event is not None:
                    yield event
            if self._is_disowned or (self._is_closed and self.is_flushed):
                return
            await self._grown.wait()

    async def flushed(self) -> None:
        """Returns when what has been appended so far is written down, or the log is abandoned."""
        target = len(self._events)
        while self._num_published < target and not self._is_disowned:
            await self._grown.wait()

    def _is_newer(self, offsets: list[int]) -> bool:
        return bool(offsets) and offsets[0] < self._num_published

    def _notify(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()
