"""Fair queues: callers take turns, and the rate of a queue predicts waits."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

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
