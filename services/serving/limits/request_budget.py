"""Memory budget of request bodies, with a share for each caller.

A body is reserved at the largest size that it may have before any of it is read, and at its real size from then on.
Bodies that should be small are not reserved: they are read at once, and the slowest are given up when many are slow.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from services.errors import RateLimited, TriptychError

Result = TypeVar("Result")

TOTAL_BYTES = 128 * 2**20
# Room for one body of the largest size and some small ones, or for two.
SHARE_BYTES = 64 * 2**20
WAIT_S = 10.0
# For the whole of a large body.
BODY_TIMEOUT_S = 60.0

# A small body arrives with its headers. Where more than so many do not, those that took longer are given up.
MAX_SLOW_READS = 8
SLOW_READ_S = 0.1
SMALL_BODY_TIMEOUT_S = 10.0


class BodyTooSlow(TriptychError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "BODY_TOO_SLOW"


class Reservation:
    """Bytes of a budget that one request holds."""

    def __init__(self, budget: "RequestBudget", caller: str, num_bytes: int) -> None:
        self._budget = budget
        self._caller = caller
        self.num_bytes = num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Gives back what is beyond `num_bytes`."""
        if num_bytes < self.num_bytes:
            self._budget.give_back(self._caller, self.num_bytes - num_bytes)
            self.num_bytes = num_bytes

    def release(self) -> None:
        """Gives back everything; a second time does nothing."""
        self.shrink(0)


class RequestBudget:
    """Waiting callers are served in order; one that has used up its share does not hold up those behind it."""

    def __init__(
        self, total_bytes: int = TOTAL_BYTES, share_bytes: int = SHARE_BYTES, wait_s: float = WAIT_S
    ) -> None:
        self._total_bytes = total_bytes
        self._share_bytes = share_bytes
        self._wait_s = wait_s
        self._free_bytes = total_bytes
        self._used: Counter[str] = Counter()
        self._waiting: deque[tuple[str, int, asyncio.Future[None]]] = deque()

    @property
    def used_bytes(self) -> int:
        return self._total_bytes - self._free_bytes

    async def reserve(self, caller: str, num_bytes: int) -> Reservation:
        """Waits for room; what is more than a share has a share. Raises RateLimited when the wait is too long."""
        num_bytes = min(num_bytes, self._share_bytes)
        if self._fits(caller, num_bytes) and not any(name == caller for name, _, _ in self._waiting):
            self._take(caller, num_bytes)
            return Reservation(self, caller, num_bytes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = caller, num_bytes, turn
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back(caller, num_bytes)
            else:
                self._waiting.remove(entry)
            if isinstance(error, TimeoutError):
                raise RateLimited(
                    "too many large requests are being read at once; send fewer at a time",
                    retry_after_s=self._wait_s,
                ) from None
            raise
        return Reservation(self, caller, num_bytes)

    @asynccontextmanager
    async def reserving(self, caller: str, num_bytes: int) -> AsyncIterator[Reservation]:
        """As `reserve`; the end of the block gives everything back."""
        reservation = await self.reserve(caller, num_bytes)
        try:
            yield reservation
        finally:
            reservation.release()

    def give_back(self, caller: str, num_bytes: int) -> None:
        """Use Reservation.shrink or release."""
        self._free_bytes += num_bytes
        self._used[caller] -= num_bytes
        if not self._used[caller]:
            del self._used[caller]
        for entry in list(self._waiting):
            name, wanted, turn = entry
            if not turn.done() and self._fits(name, wanted):
                self._waiting.remove(entry)
                self._take(name, wanted)
                turn.set_result(None)

    def _fits(self, caller: str, num_bytes: int) -> bool:
        return num_bytes <= self._free_bytes and self._used[caller] + num_bytes <= self._share_bytes

    def _take(self, caller: str, num_bytes: int) -> None:
        self._free_bytes -= num_bytes
        self._used[caller] += num_bytes


class SmallReads:
    """Reads of bodies that should be small. They begin at once; under pressure the slow ones are given up."""

    def __init__(self) -> None:
        self._pending: dict[asyncio.Timeout, float] = {}

    async def read(self, body: Awaitable[Result]) -> Result:
        """The result of `body`; raises BodyTooSlow."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SMALL_BODY_TIMEOUT_S) as limit:
                self._pending[limit] = loop.time()
                try:
                    if len(self._pending) > MAX_SLOW_READS:
                        loop.call_later(SLOW_READ_S, self._give_up_slow)
                    return await body
                finally:
                    del self._pending[limit]
        except TimeoutError:
            raise BodyTooSlow("the request did not arrive in time; send it whole at once") from None

    def _give_up_slow(self) -> None:
        now = asyncio.get_running_loop().time()
        too_many = len(self._pending) - MAX_SLOW_READS
        for limit, since in list(self._pending.items())[: max(0, too_many)]:
            if now - since >= SLOW_READ_S and not limit.expired():
                limit.reschedule(now)
