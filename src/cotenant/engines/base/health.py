"""Detects that a server process of ours hangs: it runs, but answers no longer."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from cotenant.domain.units import format_duration
from cotenant.engines.process.activity import Activity

_IDLE_SHARE: Final = 0.02
"""The share of one core below which a process that does not answer computes nothing either."""


@dataclass(frozen=True, slots=True)
class HealthRules:
    """When a ready engine is asked for its health, and when it counts as hung.

    It is asked every `every_s`, and has `timeout_s` to answer. One that does not answer hangs after `times`
    such checks if its processes use no CPU time. Else it may be busy, as a server with one thread is while
    it generates: it hangs after `busy_s`.
    """

    every_s: float = 5.0
    timeout_s: float = 5.0
    times: int = 3
    busy_s: float = 600.0


async def until_hung(
    answers: Callable[[], Awaitable[bool]], activity: Callable[[], Activity | None], rules: HealthRules
) -> str:
    """Return once an engine hangs, with what is seen of it. `activity` is None where it is not known."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(rules.every_s)
        silent_since, idle_times, before = loop.time(), 0, activity()
        while True:
            began = loop.time()
            if await answers():
                break
            await asyncio.sleep(began + rules.timeout_s - loop.time())
            now, silent_s = activity(), loop.time() - silent_since
            idle_times = idle_times + 1 if _idle(before, now, loop.time() - began) else 0
            if idle_times >= rules.times or silent_s >= rules.busy_s:
                return f"it has not answered for {format_duration(silent_s)} and {_seen(now, idle_times)}"
            before = now


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of several coroutines has ended; cancel the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _idle(before: Activity | None, now: Activity | None, within_s: float) -> bool:
    if before is None or now is None:
        return False
    return now.cpu_s - before.cpu_s <= _IDLE_SHARE * within_s


def _seen(activity: Activity | None, idle_times: int) -> str:
    if activity is not None and "T" in activity.states:
        return "its process is stopped"
    if activity is not None and "D" in activity.states:
        return "waits for a driver or a disk"
    return "computes nothing" if idle_times else "may compute without end"
