"""Decodes, PNG-encodes and publishes images on background threads, so that the device thread never waits.

Previews are held to a share of the time that steps take, so however often callers ask for them and however much they
cost, pictures are not made much later.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.engine.events import EncodedPicture, Event, EventMailbox, Failed, Finished, Preview, Timing
from services.engine.stepper import JobRequest
from services.errors import DeviceOutOfMemory, TriptychError
from services.images.codec import Picture, encode_png, encode_preview

log = logging.getLogger(__name__)

Job = TypeVar("Job")

# Of the time that steps take, this much may go into previews.
PREVIEW_SHARE = 0.1
# How far previews may run ahead of their share: the first ones come at once.
PREVIEW_CREDIT_S = 1.0


@dataclass(eq=False)
class Request:
    """The jobs that one call asked for, and where their events go."""

    caller: str
    mailbox: EventMailbox
    loop: asyncio.AbstractEventLoop
    deadline: float | None
    cancelled: bool = False
    position: int | None = None

    def post(self, event: Event) -> None:
        """Hands an event to the reader's loop, from any thread."""
        # The loop is closed only when the process ends; nobody is there to read then.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.mailbox.put, event)


@dataclass(eq=False)
class ScheduledJob(Generic[Job]):
    """A job from acceptance to delivery; written by the device thread once it is admitted."""

    ticket: JobRequest[Job]
    request: Request
    accepted_at: float
    admitted_at: float = 0.0
    step: int = 0
    num_steps: int = 0
    compute_s: float = 0.0
    is_preview_due: bool = False

    @property
    def index(self) -> int:
        return self.ticket.index

    def fail(self, error: Exception) -> None:
        """Reports the error to the caller; an internal error is logged, and the caller gets a general one."""
        if isinstance(error, MemoryError):
            error = DeviceOutOfMemory(
                "the device has no memory left for this picture; try again, or ask for less"
            )
        elif not isinstance(error, TriptychError):
            log.error("image %d failed", self.index, exc_info=error)
            error = TriptychError("internal error; see the worker's log")
        self.request.post(Failed(self.index, error))


class OutputProcessor:
    """Turns what a stepper shows of its slots into events. Its methods are called on the device thread."""

    def __init__(
        self,
        decode: Callable[[Sequence[Any]], Sequence[Picture | EncodedPicture]],
        clock: Callable[[], float],
    ) -> None:
        self._decode = decode
        self._clock = clock
        # Finished pictures take long to decode, and previews shall not wait for them.
        self._decoder = ThreadPoolExecutor(1, "decoder")
        self._encoder = ThreadPoolExecutor(1, "encoder")
        self._lock = threading.Lock()
        self._credit_s = PREVIEW_CREDIT_S
        self._is_previewing = False

    def close(self) -> None:
        """Blocks until all that is finished is posted."""
        self._decoder.shutdown()
        self._encoder.shutdown()

    def add_step_time(self, elapsed_s: float) -> None:
        """Previews earn their share of every step."""
        with self._lock:
            self._credit_s = min(PREVIEW_CREDIT_S, self._credit_s + PREVIEW_SHARE * elapsed_s)

    @property
    def previews_allowed(self) -> bool:
        """Not while the last ones are being made: their readers could not use others yet."""
        with self._lock:
            return self._credit_s > 0 and not self._is_previewing

    def deliver_previews(self, works: Sequence[ScheduledJob[Any]], views: Sequence[Any]) -> None:
        self._is_previewing = True
        steps = [work.step for work in works]
        self._encoder.submit(self._make_previews, works, views, steps)

    def deliver_results(
        self, works: Sequence[ScheduledJob[Any]], views: Sequence[Any], when_decoded: Callable[[], None]
    ) -> None:
        """Calls `when_decoded` as soon as the views are not needed any more."""
        self._decoder.submit(self._make_results, works, views, when_decoded)

    # On the threads of this class.

    def _make_previews(
        self, works: Sequence[ScheduledJob[Any]], views: Sequence[Any], steps: Sequence[int]
    ) -> None:
        started_at = self._clock()
        try:
            pictures = self._decode(views)
            for work, step, picture in zip(works, steps, pictures, strict=True):
                if not work.request.cancelled:
                    encoded = _encoded(picture, encode_preview)
                    work.request.post(Preview(work.index, step, work.num_steps, encoded))
        except Exception:
            # The image itself may still succeed; if not, its own error is reported.
            log.exception("a preview failed")
        with self._lock:
            self._credit_s -= self._clock() - started_at
            self._is_previewing = False

    def _make_results(
        self, works: Sequence[ScheduledJob[Any]], views: Sequence[Any], when_decoded: Callable[[], None]
    ) -> None:
        try:
            for work, picture, decode_s in self._decoded(works, views):
                work.compute_s += decode_s
                self._encoder.submit(self._post_result, work, picture, self._clock())
        finally:
            when_decoded()

    def _decoded(
        self, works: Sequence[ScheduledJob[Any]], views: Sequence[Any]
    ) -> Iterator[tuple[ScheduledJob[Any], Picture | EncodedPicture, float]]:
        """All in one batch; if it fails, each alone, and fails those that fail alone."""
        wanted = [(work, view) for work, view in zip(works, views, strict=True) if not work.request.cancelled]
        if not wanted:
            return
        started_at = self._clock()
        try:
            pictures = self._decode([view for _, view in wanted])
        except Exception as error:  # noqa: BLE001 - whatever a job dies of, it dies of it alone
            if len(wanted) == 1:
                wanted[0][0].fail(error)
                return
            log.warning("decoding %d pictures failed (%r); trying them one by one", len(wanted), error)
            for work, view in wanted:
                yield from self._decoded([work], [view])
        else:
            decode_s = self._clock() - started_at
            for (work, _), picture in zip(wanted, pictures, strict=True):
                yield work, picture, decode_s

    def _post_result(
        self, work: ScheduledJob[Any], picture: Picture | EncodedPicture, decoded_at: float
    ) -> None:
        if work.request.cancelled:
            return
        started_at = self._clock()
        encoded = _encoded(picture, encode_png)
        timing = Timing(
            queue_s=work.admitted_at - work.accepted_at,
            batch_wait_s=max(0.0, decoded_at - work.admitted_at - work.compute_s),
            compute_s=work.compute_s,
            encode_s=self._clock() - started_at,
        )
        work.request.post(Finished(work.index, encoded, timing))


def _encoded(picture: Picture | EncodedPicture, encode: Callable[[Picture], bytes]) -> EncodedPicture:
    if isinstance(picture, EncodedPicture):
        return picture
    height, width = picture.shape[:2]
    return EncodedPicture(encode(picture), width, height)
