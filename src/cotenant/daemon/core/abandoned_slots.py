"""Slots whose clients left while the engine was still generating."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from cotenant.interfaces import Engine

_LOG = logging.getLogger(__name__)

POLL_S: Final = 1.5
_POLLS_UNSEEN: Final = 20


class AbandonedSlotReaper:
    """Keeps a slot taken after its client left, until the engine is seen to have freed it.

    `in_flight` counts the engine's leases, abandoned ones included. A request just sent may not be in a slot
    yet, so a slot counts as freed only after two polls in a row. llama.cpp checks for clients that left when
    its result queue has been quiet for a second, and a poll disturbs that queue: polls are therefore slow.
    """

    def __init__(self, engine: Engine, in_flight: Callable[[], int], *, poll_s: float = POLL_S) -> None:
        self._engine = engine
        self._in_flight = in_flight
        self._poll_s = poll_s
        self._abandoned: deque[Callable[[], None]] = deque()
        self._task: asyncio.Task[None] | None = None

    def abandon(self, release: Callable[[], None]) -> None:
        """Call `release` once a slot has come free."""
        self._abandoned.append(release)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._settle())

    def close(self) -> None:
        """Stop polling: the engine is gone."""
        self._abandoned.clear()
        if self._task is not None:
            self._task.cancel()

    async def _settle(self) -> None:
        freed_before = unseen = 0
        while self._abandoned:
            await asyncio.sleep(self._poll_s)
            busy = await self._engine.busy_slots()
            live = self._in_flight() - len(self._abandoned)
            if busy is None:
                unseen += 1
                freed_before = 0
                if unseen < _POLLS_UNSEEN:
                    continue
                _LOG.warning(
                    "the engine does not report its slots: %d are assumed to be free", len(self._abandoned)
                )
                busy, freed_before = live, len(self._abandoned)
            unseen = 0
            freed_now = len(self._abandoned) - max(0, busy - live)
            freed = max(0, min(freed_now, freed_before))
            freed_before = freed_now - freed
            for _ in range(freed):
                self._abandoned.popleft()()
        self._task = None
