"""Those who follow what the daemon tells as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Followers(Generic[T]):
    """Tells each of them everything; one that is more than `behind` late misses the oldest."""

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._queues: set[asyncio.Queue[T]] = set()

    def tell(self, what: T) -> None:
        """Tell all of them, waiting for none."""
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(what)

    async def follow(self) -> AsyncIterator[T]:
        """Yield what is told from when the first is asked for."""
        queue: asyncio.Queue[T] = asyncio.Queue(self._behind)
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
