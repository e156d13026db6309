"""What an agent has to say: numbered events, kept until the daemon has them."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from cotenant.nodes.messages import AgentEvent, Events, FileProgress, ReadingTaken

_KEPT: Final = 1_000
_AT_ONCE: Final = 100


class EventLog:
    """Events that are not acknowledged yet, at most 1,000.

    Numbers go on from the time of the start, so that those of two runs of an agent are never taken for each
    other's.
    """

    def __init__(self) -> None:
        self.last = time.time_ns() // 1_000
        self._forgotten = self.last
        self._events: deque[AgentEvent] = deque()
        self._more = asyncio.Event()

    def add(self, event: AgentEvent) -> None:
        """Give an event the next number and keep it."""
        if isinstance(event, ReadingTaken | FileProgress):
            # Of readings, and of the progress of one file, only the last one says anything.
            self._events = deque(each for each in self._events if not _replaces(event, each))
        self.last += 1
        self._events.append(replace(event, seq=self.last))
        if len(self._events) > _KEPT:
            self._forgotten = self._events.popleft().seq
        self._more.set()

    async def after(self, number: int, wait_s: float, stamp: Callable[[], float]) -> Events:
        """Return the events after a number, once there are any or `wait_s` have passed.

        `lost` are events if some after that number were dropped, or it is one of another run.
        """
        if number < self._forgotten or number > self.last:
            return Events((), stamp(), lost=True)
        while self._events and self._events[0].seq <= number:
            self._forgotten = self._events.popleft().seq
        if not self._events:
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._more.wait()
        found = [event for event in self._events if event.seq > number]
        return Events(tuple(found[:_AT_ONCE]), stamp())


def _replaces(event: ReadingTaken | FileProgress, other: AgentEvent) -> bool:
    if isinstance(event, FileProgress):
        return isinstance(other, FileProgress) and other.path == event.path
    return isinstance(other, ReadingTaken)
