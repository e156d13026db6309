"""Sends each value to every subscriber."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Broadcast(Generic[T]):
    """Sends each value to all subscribers; one with more than `backlog` unread values loses the oldest."""

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._queues: set[asyncio.Queue[T]] = set()

    def publish(self, value: T) -> None:
        """Send a value to every subscriber without waiting for any."""
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(value)

    async def subscribe(self) -> AsyncIterator[T]:
        """Yield the values that are published after the first one is awaited."""
        queue: asyncio.Queue[T] = asyncio.Queue(self._backlog)
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
