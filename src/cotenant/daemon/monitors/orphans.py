"""Removes what a killed daemon left behind: processes, and containers of engines that served models use."""

import asyncio

from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.domain.errors import EngineMissing
from cotenant.domain.launching import LauncherKind, LaunchOptions
from cotenant.engines.launch.launchers import kind_of
from cotenant.engines.launch.orphans import kill_orphans, remove_orphaned_containers


class OrphanCleaner:
    """Cleans up in each container engine when a model first uses it, at the start or after a reload.

    A container engine is not started, which may take seconds, unless a served model runs in an image.
    """

    def __init__(self, served: ActiveConfiguration) -> None:
        self._served = served
        self._changed = asyncio.Event()

    def served_changed(self) -> None:
        """Check again: the served models may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Clean up until cancelled."""
        await asyncio.to_thread(kill_orphans)
        cleared: set[LauncherKind] = set()
        while True:
            self._changed.clear()
            fresh = self._kinds() - cleared
            if fresh:
                await asyncio.to_thread(remove_orphaned_containers, fresh)
                cleared |= fresh
            await self._changed.wait()

    def _kinds(self) -> set[LauncherKind]:
        found = (_launcher(entry.launch) for entry in self._served.models)
        return {kind for kind in found if kind is not None}


def _launcher(terms: LaunchOptions) -> LauncherKind | None:
    try:
        return kind_of(terms) if terms.image is not None else None
    except EngineMissing:
        return None
