"""Measures the progress of loads."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cotenant.clock import Clock
from cotenant.daemon.core.effects import Running
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.nodes import NodeError
from cotenant.domain.residencies import ResidencyState
from cotenant.hardware.model_cache.load_progress import LoadedBytes, loaded_bytes
from cotenant.nodes.engine import NodeEngine
from cotenant.nodes.spanning import engines_of

EVERY_S: Final = 1.0
_AT_MOST: Final = 0.05


class LoadWatcher:
    """Measures what loading engines have read, every `every_s` while a model loads.

    A measurement of a large model takes long; all of them together take at most a twentieth of a core.
    """

    def __init__(self, view: FleetView, clock: Clock, *, every_s: float = EVERY_S) -> None:
        self._view = view
        self._clock = clock
        self._every_s = every_s
        self._watching: asyncio.Task[None] | None = None

    def decided(self, decision: Decision) -> None:
        """Start measuring when a load starts."""
        idle = self._watching is None or self._watching.done()
        if decision.kind is DecisionKind.LOAD and idle:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        pause_s = self._every_s
        while True:
            await asyncio.sleep(pause_s)
            loading = [*self._loading()]
            if not loading:
                return
            began = self._clock.now()
            for running, pid, paths in loading:
                if engines := engines_of(running.engine):
                    seen = await _ask(engines[0])
                else:
                    seen = None if pid is None else await asyncio.to_thread(_measure, pid, paths)
                if seen is not None:
                    running.record_progress(seen)
            pause_s = max(self._every_s, (self._clock.now() - began) / _AT_MOST)

    def _loading(self) -> Iterator[tuple[Running, int | None, Sequence[Path]]]:
        """Yield the engines that load, with their process once there is one, and the model's files."""
        for residency, running in self._view.loaded():
            entry = self._view.entry(residency.model)
            pid = running.engine.pid if running.engine is not None else None
            if residency.state is ResidencyState.LOADING and entry is not None:
                yield running, pid, entry.parts


async def _ask(engine: NodeEngine) -> LoadedBytes | None:
    try:
        found = await engine.load_progress()
    except NodeError:
        return None
    return None if found.total_bytes is None else LoadedBytes(found.read_bytes, found.total_bytes)


def _measure(pid: int, paths: Sequence[Path]) -> LoadedBytes | None:
    try:
        return loaded_bytes(pid, paths)
    except OSError:  # a file was deleted during the load
        return None
