"""Tasks that run in the background until they end or their owner closes."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class BackgroundTasks:
    """Starts tasks that are not awaited, and holds references to them so that none is garbage-collected."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` as a task of the running event loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finished(self) -> None:
        """Return when all tasks started so far have ended; their exceptions are dropped."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
