"""How far loads have come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cotenant.clock import Clock
from cotenant.daemon.core.effects import Running
from cotenant.daemon.core.loop import Loop
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.residencies import ResidencyState
from cotenant.hardware.model_cache.load_progress import LoadedBytes, loaded_bytes

EVERY_S: Final = 1.0
_AT_MOST: Final = 0.05


class LoadWatcher:
    """Looks at what loading engines have read, each `every_s`, and not at all while nothing loads.

    Looking costs more the larger the model; it never takes more than a twentieth of a core.
    """

    def __init__(self, loop: Loop, clock: Clock, *, every_s: float = EVERY_S) -> None:
        self._loop = loop
        self._clock = clock
        self._every_s = every_s
        self._watching: asyncio.Task[None] | None = None

    def decided(self, decision: Decision) -> None:
        """Begin to look once a load has begun."""
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
                if pid is None:
                    continue
                seen = await asyncio.to_thread(_look, pid, paths)
                if seen is not None:
                    running.loaded_bytes = _furthest(running.loaded_bytes, seen)
            pause_s = max(self._every_s, (self._clock.now() - began) / _AT_MOST)

    def _loading(self) -> Iterator[tuple[Running, int | None, Sequence[Path]]]:
        """Yield what loads, with its process once there is one, and its files."""
        for residency, running in self._loop.loaded():
            entry = self._loop.entry(residency.model)
            pid = running.engine.pid if running.engine is not None else None
            if residency.state is ResidencyState.LOADING and entry is not None:
                yield running, pid, entry.parts


def _look(pid: int, paths: Sequence[Path]) -> LoadedBytes | None:
    try:
        return loaded_bytes(pid, paths)
    except OSError:  # a file has been deleted while it was loaded
        return None


def _furthest(before: LoadedBytes | None, now: LoadedBytes) -> LoadedBytes:
    """Keep what was reached: an engine lets go of what it has copied to its devices."""
    if before is None or before.read_bytes is None or now.read_bytes is None:
        return now
    return LoadedBytes(max(before.read_bytes, now.read_bytes), now.total_bytes)
