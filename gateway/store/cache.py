"""An LRU cache in front of an image store."""

from collections import OrderedDict
from collections.abc import AsyncGenerator
from pathlib import Path

from gateway.store.base import Store, StoredImage

# Children are made from images that were just stored, and watchers are shown them at once.
RECENT_BYTES = 64 * 2**20


class CachedStore:
    """Keeps the most recently used images in memory, up to `max_bytes`."""

    def __init__(self, store: Store, max_bytes: int = RECENT_BYTES) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._num_bytes = 0

    def __str__(self) -> str:
        return str(self._store)

    async def check(self) -> None:
        await self._store.check()

    async def read_owner(self) -> str | None:
        return await self._store.read_owner()

    async def write_owner(self, journal_id: str) -> None:
        await self._store.write_owner(journal_id)

    async def hold(self, *, is_shared: bool) -> None:
        await self._store.hold(is_shared=is_shared)

    async def put(self, data: bytes) -> str:
        sha256 = await self._store.put(data)
        self._remember(sha256, data)
        return sha256

    async def put_file(self, path: Path) -> str:
        return await self._store.put_file(path)

    async def size(self, sha256: str) -> int:
        return await self._store.size(sha256)

    def read_parts(self, sha256: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        return self._store.read_parts(sha256, start, stop)

    async def get(self, sha256: str) -> bytes:
        if (data := self._recent.get(sha256)) is not None:
            self._recent.move_to_end(sha256)
            return data
        data = await self._store.get(sha256)
        self._remember(sha256, data)
        return data

    async def delete(self, sha256: str, *, put_before: float | None = None) -> None:
        self._forget(sha256)
        await self._store.delete(sha256, put_before=put_before)

    def iterate(self) -> AsyncGenerator[StoredImage]:
        return self._store.iterate()

    async def close(self) -> None:
        self._recent.clear()
        await self._store.close()

    def _remember(self, sha256: str, data: bytes) -> None:
        self._forget(sha256)
        self._recent[sha256] = data
        self._num_bytes += len(data)
        while self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._recent)))

    def _forget(self, sha256: str) -> None:
        self._num_bytes -= len(self._recent.pop(sha256, b""))
