"""Fair queue of images for which no worker has free capacity.

They are no worker's yet, so that one that joins takes its share of them at once. It knows workers by what is promised
to them, and nothing of pictures.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.workers.worker import Worker
from services.errors import DeadlineExceeded
from services.queues import FairQueue, QueueRate

# Positions are reported no more often: a long queue moves with every image that ends.
TELL_EVERY_S = 2.0

OnPosition = Callable[[int, float | None], None]


@dataclass(frozen=True)
class WaitRequest:
    """A picture that has to wait: its caller, its longest wait, and the callback for its position, from 1, and its estimated wait."""

    caller: str = ""
    timeout_s: float | None = None
    on_position: OnPosition = lambda position, wait_s: None


@dataclass(frozen=True)
class Availability:
    """What there is for a picture now: a worker with room, or none that could ever have it, or else the line.

    `num_ahead` is how many wait at a worker before it, and `wait_s` how long they will, where that is known.
    """

    worker: Worker | None = None
    has_to_wait: bool = False
    num_ahead: int = 0
    wait_s: float | None = None


@dataclass(eq=False)
class Ticket:
    key: str
    look: Callable[[], Availability]
    on_position: OnPosition
    turn: asyncio.Future[Worker | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class ImageQueue:
    """`serve` has to be called whenever a worker may have room that had none, or may be given no work any more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: FairQueue[Ticket] = FairQueue()
        # What there is for the pictures of each key, which are interchangeable.
        self._looks: dict[str, Callable[[], Availability]] = {}
        self._pace = QueueRate()
        self._served_at: float | None = None
        self._telling: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._places)

    async def wait(self, waiter: WaitRequest, kind: str, look: Callable[[], Availability]) -> Worker | None:
        """The worker that has room for it, at its turn; None once there is no worker that it could wait for.

        `kind` distinguishes images that may not use the same workers. The room is counted in `Worker.promised` until
        the picture takes it away from there. Raises DeadlineExceeded.
        """
        place = Ticket(f"{waiter.caller}\n{kind}", look, waiter.on_position)
        self._places.push(place, place.key)
        self._looks[place.key] = look
        if self._served_at is None:
            self._served_at = self._clock()
        self._tell_one(place, next(n for n, one in enumerate(self._places, 1) if one is place))
        self._tell_soon()
        try:
            async with asyncio.timeout(waiter.timeout_s):
                return await place.turn
        except TimeoutError:
            self._leave(place)
            raise DeadlineExceeded(f"no worker had room within {waiter.timeout_s:g} s") from None
        except asyncio.CancelledError:
            self._leave(place)
            raise

    def serve(self) -> None:
        """Gives what room there is to those whose turn it is."""
        while (place := self._places.pop_for(self._may_go)) is not None:
            if place.turn.done():
                # The one that waited here has just been cancelled.
                continue
            worker = place.look().worker
            if worker is not None:
                worker.promised += 1
                now = self._clock()
                self._pace.moved(1, now - (self._served_at or now))
                self._served_at = now
            place.turn.set_result(worker)
        if not self._places:
            self._looks.clear()
            self._served_at = None

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    def _may_go(self, key: str) -> bool:
        return not self._looks[key]().has_to_wait

    def _leave(self, place: Ticket) -> None:
        self._places.remove(lambda one: one is place)
        has_had_turn = place.turn.done() and not place.turn.cancelled()
        if has_had_turn and (worker := place.turn.result()) is not None:
            worker.promised -= 1
        self.serve()

    def _tell_one(self, place: Ticket, position: int) -> None:
        look = place.look()
        here_s, there_s = self._pace.wait_s(position), look.wait_s
        wait_s = here_s + there_s if here_s is not None and there_s is not None else here_s
        place.on_position(position + look.num_ahead, wait_s)

    def _tell_soon(self) -> None:
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        for position, place in enumerate(self._places, 1):
            self._tell_one(place, position)
        if self._places:
            self._tell_soon()
