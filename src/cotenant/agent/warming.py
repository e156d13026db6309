"""Model files that are kept in the RAM of an agent's machine, as the daemon says."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cotenant.agent.events import EventLog
from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.model_cache.warm import Warmed, WarmTier, forget
from cotenant.nodes.file_messages import Warm, WarmBudget
from cotenant.nodes.messages import FilesWarmed

_STOPS_WITHIN_S: Final = 2.0

_LOG = logging.getLogger(__name__)


class Warming:
    """One pass at a time: a new one ends the one before. `why_over` says why none may run any more.

    `changed` is called after each, when other files are in the page cache than before.
    """

    def __init__(
        self,
        clock: Clock,
        events: EventLog,
        why_over: Callable[[], str | None],
        changed: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._events = events
        self._why_over = why_over
        self._changed = changed
        self._memory = HostProbe(clock).memory
        self._pass: asyncio.Task[None] | None = None
        self._stopped: str | None = None

    async def budget(self, limit_bytes: int | None) -> WarmBudget:
        """Return how much of the machine's RAM files may take, and why none may be read now, if so."""
        tier = WarmTier(limit_bytes, self._clock, self._memory)
        return WarmBudget(*await asyncio.to_thread(tier.budget))

    async def begin(self, asked: Warm) -> None:
        """Read files into RAM; FilesWarmed follows."""
        await self.stop("another one begins")
        self._stopped = None
        self._pass = asyncio.get_running_loop().create_task(self._run(asked))

    async def stop(self, why: str) -> None:
        """End the pass that runs, if one does, and return once it has."""
        self._stopped = self._stopped or why
        if self._pass is not None:
            # A read from a disk of the network may hang: it is left behind.
            await asyncio.wait({self._pass}, timeout=_STOPS_WITHIN_S)
            self._pass.cancel()

    async def forget(self, paths: tuple[Path, ...]) -> None:
        """Give the RAM of files back."""
        await run_in_detached_thread(lambda: forget(paths))
        self._changed()

    async def _run(self, asked: Warm) -> None:
        tier = WarmTier(None, self._clock, self._memory)
        try:
            done = await tier.warm(
                asked.paths,
                asked.reason,
                limit_bytes=asked.limit_bytes,
                yields_to=lambda: self._stopped or self._why_over(),
                at_idle=asked.at_idle,
            )
        except Exception as error:
            _LOG.exception("reading ahead failed unexpectedly")
            done = Warmed(stopped=f"it failed unexpectedly: {error}")
        told = done.total_bytes, done.covered_bytes, done.read_bytes, done.seconds, done.stopped
        self._events.add(FilesWarmed(asked.number, *told))
        if done.read_bytes:
            self._changed()
