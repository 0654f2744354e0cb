"""A run's events: numbered without gaps, kept, and followed by any number of readers at their own pace.

Readers hold a place in the log and no queue of their own, so a slow one costs no memory: of each unfinished picture
only the newest preview is kept, and none once it is finished; everything else stays. It knows nothing of runs.
"""

import asyncio
from collections.abc import AsyncIterator

from triptych.v1.pipeline_pb2 import Event
from triptych.v1.stage_pb2 import Stage


class EventLog:
    def __init__(self) -> None:
        # Event i has sequence i + 1; None is a preview that a newer one, or the finished picture, has replaced.
        self._events: list[Event | None] = []
        self._previews: dict[tuple[Stage.ValueType, int], int] = {}
        self._is_closed = False
        self._grown = asyncio.Event()

    @property
    def last_sequence(self) -> int:
        return len(self._events)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def append(self, event: Event) -> None:
        """Numbers the event, dates it and wakes the readers."""
        assert not self._is_closed, "an event after the last one"  # noqa: S101 - our own bug
        event.sequence = len(self._events) + 1
        event.time.GetCurrentTime()
        if event.HasField("preview"):
            key = (event.preview.stage, event.preview.index)
            self._drop_preview(key)
            self._previews[key] = len(self._events)
        elif event.HasField("image_ready"):
            self._drop_preview((event.image_ready.image.stage, event.image_ready.image.index))
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Ends the log: readers stop once they have had the last event."""
        self._is_closed = True
        self._previews.clear()
        self._wake()

    async def follow(self, after_sequence: int = 0) -> AsyncIterator[Event]:
        """Yields the kept events after that sequence number, then new ones as they come, until the log is closed."""
        place = max(after_sequence, 0)
        while True:
            while place < len(self._events):
                event = self._events[place]
                place += 1
                if event is not None:
                    yield event
            if self._is_closed:
                return
            await self._grown.wait()

    def _drop_preview(self, key: tuple[Stage.ValueType, int]) -> None:
        if (place := self._previews.pop(key, None)) is not None:
            self._events[place] = None

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()
