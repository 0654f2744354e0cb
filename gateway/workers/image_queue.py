"""Fair queue of images for which no worker has free capacity.

They are no worker's yet, so that a worker that joins takes its share of them at once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.workers.worker import Worker
from services.errors import DeadlineExceeded
from services.queues import WaitingQueue

OnPosition = Callable[[int, float | None], None]


@dataclass(frozen=True)
class WaitRequest:
    """An image that may have to wait: whose it is, for how long at most, and what is called with its position, from 1,
    and its expected wait in seconds."""

    caller: str = ""
    timeout_s: float | None = None
    on_position: OnPosition = lambda position, wait_s: None


@dataclass(frozen=True)
class Availability:
    """What there is for an image now: a worker with room, none that could ever have it, or else the queue.

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
    worker: asyncio.Future[Worker | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class ImageQueue:
    """`dispatch` has to be called whenever a worker may have room that had none, or may be given no work any more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._queue: WaitingQueue[Ticket] = WaitingQueue(clock, self._report)
        # What there is for the images of each key, which are interchangeable.
        self._looks: dict[str, Callable[[], Availability]] = {}

    def __len__(self) -> int:
        return len(self._queue)

    async def wait(self, request: WaitRequest, kind: str, look: Callable[[], Availability]) -> Worker | None:
        """The worker that has room for it, at its turn; None once there is no worker that it could wait for.

        `kind` separates images that may not be given the same workers. The room is counted in `Worker.promised` until
        the image takes it away from there. Raises DeadlineExceeded.
        """
        ticket = Ticket(f"{request.caller}\n{kind}", look, request.on_position)
        self._queue.enter(ticket, ticket.key)
        self._looks[ticket.key] = look
        self._queue.report_position(ticket)
        try:
            async with asyncio.timeout(request.timeout_s):
                return await ticket.worker
        except TimeoutError:
            self._leave(ticket)
            raise DeadlineExceeded(f"no worker had room within {request.timeout_s:g} s") from None
        except asyncio.CancelledError:
            self._leave(ticket)
            raise

    def dispatch(self) -> None:
        """Gives what room there is to those whose turn it is."""
        while (ticket := self._queue.next(self._may_go)) is not None:
            if ticket.worker.done():
                # Its image has just been cancelled.
                continue
            worker = ticket.look().worker
            if worker is not None:
                worker.promised += 1
                self._queue.count_move()
            ticket.worker.set_result(worker)
        if not self._queue:
            self._looks.clear()

    def close(self) -> None:
        self._queue.close()

    def _may_go(self, key: str) -> bool:
        return not self._looks[key]().has_to_wait

    def _leave(self, ticket: Ticket) -> None:
        self._queue.leave(ticket)
        has_result = ticket.worker.done() and not ticket.worker.cancelled()
        if has_result and (worker := ticket.worker.result()) is not None:
            worker.promised -= 1
        self.dispatch()

    def _report(self, ticket: Ticket, position: int, wait_s: float | None) -> None:
        found = ticket.look()
        if wait_s is not None and found.wait_s is not None:
            wait_s += found.wait_s
        ticket.on_position(position + found.num_ahead, wait_s)
