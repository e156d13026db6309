"""Runs work in a thread that may hang: a call into a GPU driver may never return."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_in_detached_thread(work: Callable[[], T]) -> T:
    """Run `work` in a daemon thread of its own; return its result or raise its exception.

    The event loop joins the threads of `asyncio.to_thread` when it closes, so one that hangs would keep the
    daemon from exiting. This thread is abandoned instead.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def deliver(how: Callable[[], None]) -> None:
        # The loop may have closed meanwhile, or the caller may have been cancelled.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if done.done() else how())

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            fault = error
            deliver(lambda: done.set_exception(fault))
        else:
            deliver(lambda: done.set_result(result))

    threading.Thread(target=run, name="detached", daemon=True).start()
    return await done
