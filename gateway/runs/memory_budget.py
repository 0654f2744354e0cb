"""Memory limit shared by all runs: a weighted semaphore, first come first served."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WeightedSemaphore:
    def __init__(self, total: int) -> None:
        self._total = total
        self._left = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def holding(self, amount: int) -> AsyncIterator[None]:
        """Takes that much inside the block; what is more than there is in all has it for itself."""
        amount = min(amount, self._total)
        await self._take(amount)
        try:
            yield
        finally:
            self._left += amount
            self._serve()

    async def _take(self, amount: int) -> None:
        if not self._waiting and amount <= self._left:
            self._left -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._left += amount
            else:
                self._waiting.remove((amount, turn))
            self._serve()
            raise

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            amount, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._left -= amount
                turn.set_result(None)
