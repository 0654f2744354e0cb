"""Fair queues: callers take turns, and the rate of a queue predicts waits.

FairQueue orders items, QueueRate measures, and WaitingQueue is both, with periodic reports of positions.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Positions are reported no more often: a long queue moves with every item that leaves it.
REPORT_EVERY_S = 2.0
# Weight of a move that was this many places ago. Queues move in bursts as batches end, so fewer places say little.
DECAY = 0.9


class FairQueue(Generic[Item]):
    """First in, first out within a caller; one each between callers. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._by_caller: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._by_caller.values())

    def __iter__(self) -> Iterator[Item]:
        """In the order in which `pop` would give them."""
        queues = [deque(queue) for queue in self._by_caller.values()]
        while queues:
            for queue in queues:
                yield queue.popleft()
            queues = [queue for queue in queues if queue]

    def push(self, item: Item, caller: str) -> None:
        self._by_caller.setdefault(caller, deque()).append(item)

    def pop(self) -> Item:
        """The next item; its caller goes to the end of the round."""
        caller, queue = next(iter(self._by_caller.items()))
        item = queue.popleft()
        self._by_caller.move_to_end(caller)
        if not queue:
            del self._by_caller[caller]
        return item

    def pop_for(self, may_have: Callable[[str], bool]) -> Item | None:
        """As `pop`, of the first caller in turn for whom that is true; None where it is for nobody who waits."""
        for caller in self._by_caller:
            if may_have(caller):
                self._by_caller.move_to_end(caller, last=False)
                return self.pop()
        return None

    def pop_item(self, may_have: Callable[[Item], bool]) -> Item | None:
        """The first item for which that is true, of the first caller in turn who has one; None where nobody has."""
        for caller, queue in self._by_caller.items():
            for index, item in enumerate(queue):
                if may_have(item):
                    del queue[index]
                    self._by_caller.move_to_end(caller)
                    if not queue:
                        del self._by_caller[caller]
                    return item
        return None

    def sort(self, caller: str, key: Callable[[Item], int]) -> None:
        """Gives the items of a caller another order among themselves."""
        if caller in self._by_caller:
            self._by_caller[caller] = deque(sorted(self._by_caller[caller], key=key))

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Takes out and returns the items for which `unwanted` is true."""
        removed: list[Item] = []
        for caller, queue in list(self._by_caller.items()):
            kept: deque[Item] = deque()
            for item in queue:
                (removed if unwanted(item) else kept).append(item)
            if kept:
                self._by_caller[caller] = kept
            else:
                del self._by_caller[caller]
        return removed


class QueueRate:
    """Measured seconds per place of a queue, with recent moves weighted most."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._places = 0.0

    def moved(self, places: int, seconds: float) -> None:
        """Records that the queue moved by `places` in `seconds`."""
        if places <= 0 or seconds < 0:
            return
        kept = DECAY**places
        self._seconds = kept * self._seconds + seconds
        self._places = kept * self._places + places

    def wait_s(self, position: int) -> float | None:
        """Expected wait at this position; None before anything was measured."""
        return position * self._seconds / self._places if self._places else None


class WaitingQueue(Generic[Item]):
    """A FairQueue on an event loop. `report` is called with an item, its position from 1, and its expected wait in
    seconds where that is known: by `report_position`, then every REPORT_EVERY_S while it waits.
    """

    def __init__(self, clock: Callable[[], float], report: Callable[[Item, int, float | None], None]) -> None:
        self._clock = clock
        self._report = report
        self._items: FairQueue[Item] = FairQueue()
        self._rate = QueueRate()
        # When an item last went on; None if nothing has waited since.
        self._moved_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """In the order in which they would go on if all might."""
        return iter(self._items)

    def enter(self, item: Item, caller: str) -> None:
        self._items.push(item, caller)

    def leave(self, item: Item) -> None:
        """Takes the item out, if it is there."""
        self._items.remove(lambda one: one is item)

    def next(self, may_go: Callable[[str], bool]) -> Item | None:
        """Takes out the next item of the first caller in turn for whom `may_go` is true."""
        return self._items.pop_for(may_go)

    def next_item(self, may_go: Callable[[Item], bool]) -> Item | None:
        """Takes out the first item for which `may_go` is true, of the first caller in turn who has one."""
        return self._items.pop_item(may_go)

    def sort(self, caller: str, key: Callable[[Item], int]) -> None:
        """Gives the items of a caller another order among themselves."""
        self._items.sort(caller, key)

    def count_move(self) -> None:
        """An item that waited has gone on: the time since the one before is the queue's rate."""
        now = self._clock()
        if self._moved_at is not None:
            self._rate.moved(1, now - self._moved_at)
        # What comes next does not wait for this one if nothing waits now.
        self._moved_at = now if self._items else None

    def wait_s(self, position: int) -> float | None:
        return self._rate.wait_s(position)

    def report_position(self, item: Item) -> None:
        self._report_one(next(n for n, one in enumerate(self._items, 1) if one is item), item)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPORT_EVERY_S, self._report_all)

    def report_positions(self) -> None:
        self.close()
        self._report_all()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _report_one(self, position: int, item: Item) -> None:
        self._report(item, position, self._rate.wait_s(position))

    def _report_all(self) -> None:
        self._timer = None
        for position, item in enumerate(self._items, 1):
            self._report_one(position, item)
        if self._items:
            self._timer = asyncio.get_running_loop().call_later(REPORT_EVERY_S, self._report_all)
