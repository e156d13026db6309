"""Work for a thread that nobody waits for: drivers may hang, and then no thread of theirs ever ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def aside(work: Callable[[], T]) -> T:
    """Do some work in a thread of its own, and return what it returns or raise what it raises.

    The threads of `asyncio.to_thread` are waited for when the event loop ends, so that one that hangs keeps
    the daemon from ending. This one is left behind.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(how: Callable[[], None]) -> None:
        # The loop may have gone meanwhile, or nobody may wait any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if done.done() else how())

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            fault = error
            tell(lambda: done.set_exception(fault))
        else:
            tell(lambda: done.set_result(result))

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await done
