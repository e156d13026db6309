"""A bounded number of threads for work that clients ask for, apart from those that loads of models need."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from cotenant.concurrency.detached_thread import run_in_detached_thread

T = TypeVar("T")


class ThreadGate:
    """Runs at most `running` pieces of work at once; at most `waiting` more wait for their turn.

    Beyond that, `run` raises what `full` returns. Work whose caller is cancelled while it waits never starts;
    a thread cannot be ended, so work that has started keeps its place until it is done.
    """

    def __init__(self, full: Callable[[], Exception], *, running: int = 1, waiting: int = 8) -> None:
        self._full = full
        self._room = running + waiting
        self._turn = asyncio.Semaphore(running)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread when its turn comes; return its result or raise its exception."""
        if self._room == 0:
            raise self._full()
        self._room -= 1
        try:
            await self._turn.acquire()
        except BaseException:
            self._room += 1
            raise
        running = asyncio.ensure_future(run_in_detached_thread(work))
        running.add_done_callback(self._leave)
        return await asyncio.shield(running)

    def _leave(self, ended: asyncio.Future[Any]) -> None:
        self._room += 1
        self._turn.release()
        if not ended.cancelled():
            ended.exception()  # its caller may be gone
