"""Stops sleeping engines when their remaining memory is needed."""

import asyncio
import logging
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, field
from typing import Final

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.engines.hosts import EngineHosts

_LOG = logging.getLogger(__name__)
_IN_NEED: Final = (DecisionKind.REFUSED, DecisionKind.OVERCOMMITTED)
_ROOM_CHANGED: Final = (DecisionKind.WAITING, DecisionKind.FREED)


@dataclass(frozen=True, slots=True)
class SleepingEngines:
    """Ends sleeping engines when a model waits for memory, and those of models that are no longer served."""

    _hosts: EngineHosts
    _view: FleetView
    _served: Callable[[], Collection[str]]
    _memory_freed: Callable[[], None]
    _ending: BackgroundTasks = field(default_factory=BackgroundTasks)

    def decided(self, decision: Decision) -> None:
        """Free memory if a decision says that a model needs it."""
        if not self._hosts.asleep:
            return
        served = set(self._served())
        if self._hosts.asleep.keys() - served:
            self._release(served)
        if decision.kind in _IN_NEED:
            self._release({decision.model} if decision.model else set())
        elif decision.kind in _ROOM_CHANGED:
            # The next decision may already place the model that waits.
            asyncio.get_running_loop().call_soon(self._make_room)

    def _make_room(self) -> None:
        waiting = set(self._view.models_without_room())
        if waiting:
            self._release(waiting)

    def _release(self, keep: Set[str]) -> None:
        self._ending.start(self._end(keep))

    async def _end(self, keep: Set[str]) -> None:
        ended = await self._hosts.end_sleeping(keep)
        if ended:
            _LOG.info("ended sleeping engines, since their memory is needed: %s", ", ".join(ended))
            self._memory_freed()
