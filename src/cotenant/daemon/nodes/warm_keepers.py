"""Files of models kept in the RAM of other machines, by the keeper that this machine's files have."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.monitors.warm_keeper import EVERY_S, WarmKeeper
from cotenant.domain.decisions import Decision
from cotenant.domain.errors import CotenantError
from cotenant.domain.nodes import FileState
from cotenant.hardware.model_cache.warm import Warmed
from cotenant.nodes.engine_host import NodeEngineHost

_PAUSE_S: Final = 1.0
_YIELDS_WITHIN_S: Final = 0.5

_LOG = logging.getLogger(__name__)


class NodeModelCache:
    """The page cache of another machine, of which files may take `limit_bytes`, None for half of its RAM."""

    def __init__(self, host: NodeEngineHost, limit_bytes: int | None) -> None:
        self._host = host
        self._limit_bytes = limit_bytes

    async def budget(self) -> tuple[int, str | None]:
        """Return its budget, as `WarmTier.budget`, once it answers."""
        while True:
            try:
                found = await self._host.warm_budget(self._limit_bytes)
                return found.budget_bytes, found.paused
            except CotenantError:
                await asyncio.sleep(_PAUSE_S)

    async def warm(
        self,
        paths: Sequence[Path],
        reason: str,
        *,
        limit_bytes: int | None = None,
        yields_to: Callable[[], str | None] = lambda: None,
        at_idle: bool = False,
    ) -> Warmed:
        """Have it read files, as `WarmTier.warm`; no error is raised, it is why it ended early."""
        reading = asyncio.ensure_future(self._host.warm(paths, reason, limit_bytes, at_idle=at_idle))
        try:
            while not (await asyncio.wait({reading}, timeout=_YIELDS_WITHIN_S))[0]:
                if (why := yields_to()) is not None:
                    await self._host.stop_warming(why)
            done = reading.result()
        except CotenantError as error:
            return Warmed(stopped=error.message)
        finally:
            reading.cancel()
        return Warmed(done.total_bytes, done.covered_bytes, done.read_bytes, done.seconds, done.stopped)

    async def forget(self, paths: Sequence[Path]) -> None:
        """Have it give the RAM of files back; one that does not answer keeps them as long as it has room."""
        try:
            await self._host.forget_files(paths)
        except CotenantError as error:
            _LOG.info("%s keeps files in RAM: %s", self._host.node, error.message)

    async def is_unknown(self, paths: Sequence[Path]) -> bool:
        """Whether its kernel does not say what is in RAM."""
        try:
            found = await self._host.files(paths)
        except CotenantError:
            return True
        return any(each.state is not FileState.ABSENT and each.warm_bytes is None for each in found)


class NodeWarmKeepers:
    """Runs a keeper for each machine that answers, with a budget of its own RAM.

    Models whose files it lacks are no concern of it.
    """

    def __init__(
        self, loop: Loop, view: FleetView, limit_bytes: int | None, *, every_s: float = EVERY_S
    ) -> None:
        self._loop = loop
        self._view = view
        self._limit_bytes = limit_bytes
        self._every_s = every_s
        self._keepers: dict[str, tuple[WarmKeeper, asyncio.Task[None]]] = {}

    def greeted(self, host: NodeEngineHost) -> None:
        """Keep files on a machine that answers, unless that is under way."""
        if host.node not in self._keepers:
            cache = NodeModelCache(host, self._limit_bytes)
            keeper = WarmKeeper(
                cache, self._loop, self._view, node=host.node, every_s=self._every_s, pause_s=_PAUSE_S
            )
            self._keepers[host.node] = keeper, asyncio.get_running_loop().create_task(keeper.run())

    def lost(self, node: str) -> None:
        """Keep nothing on a machine that is lost."""
        found = self._keepers.pop(node, None)
        if found is not None:
            found[1].cancel()
            self._loop.record_warm(None, node)

    def decided(self, decision: Decision) -> None:
        """Look again soon, on each machine."""
        for keeper, _ in self._keepers.values():
            keeper.decided(decision)

    async def close(self) -> None:
        """Keep nothing any more."""
        tasks = [task for _, task in self._keepers.values()]
        self._keepers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
