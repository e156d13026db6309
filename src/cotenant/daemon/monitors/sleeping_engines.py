"""Engines that sleep give way to whoever needs the rest of what they hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Set
from typing import Final

from cotenant.daemon.core.loop import Loop
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.engines.vllm.engine import VllmHost

_LOG = logging.getLogger(__name__)
_IN_NEED: Final = (DecisionKind.REFUSED, DecisionKind.OVERCOMMITTED)
_ROOM_CHANGED: Final = (DecisionKind.WAITING, DecisionKind.FREED)


class Sleepers:
    """Ends what sleeps when a model waits for room, and what is served no more."""

    def __init__(self, host: VllmHost, loop: Loop, served: Callable[[], Collection[str]]) -> None:
        self._host = host
        self._loop = loop
        self._served = served
        self._ending: set[asyncio.Task[None]] = set()

    def decided(self, decision: Decision) -> None:
        """Make room where a decision tells of need."""
        if not self._host.asleep:
            return
        served = set(self._served())
        if self._host.asleep.keys() - served:
            self._release(served)
        if decision.kind in _IN_NEED:
            self._release({decision.model} if decision.model else set())
        elif decision.kind in _ROOM_CHANGED:
            # What is decided next may place whoever waits.
            asyncio.get_running_loop().call_soon(self._make_room)

    async def close(self) -> None:
        """End all of them."""
        await self._host.close()

    def _make_room(self) -> None:
        waiting = set(self._loop.models_without_room())
        if waiting:
            self._release(waiting)

    def _release(self, keep: Set[str]) -> None:
        ending = asyncio.get_running_loop().create_task(self._end(keep))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, keep: Set[str]) -> None:
        ended = await self._host.release(keep)
        if ended:
            _LOG.info("ended what slept, for its memory is needed: %s", ", ".join(ended))
            self._loop.wake_watchers()
