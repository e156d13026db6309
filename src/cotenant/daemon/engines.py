"""Connects the hosts of all engine kinds with the monitors of engines that are not exactly one process."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.monitors.attribution import EngineUsage
from cotenant.daemon.monitors.measured_footprints import MeasuredFootprints
from cotenant.daemon.monitors.ollama_daemons import OllamaDaemons
from cotenant.daemon.monitors.orphans import OrphanCleaner
from cotenant.daemon.monitors.sleeping_engines import SleepingEngines
from cotenant.domain.records import ModelOnEngine
from cotenant.engines.hosts import EngineHosts


class EngineMonitors:
    """Watches what engines hold beyond their processes; `known_bytes` is what models took in past runs."""

    def __init__(
        self,
        hosts: EngineHosts,
        loop: Loop,
        view: FleetView,
        active: ActiveConfiguration,
        known_bytes: Mapping[ModelOnEngine, int],
    ) -> None:
        self._hosts = hosts
        self._orphans = OrphanCleaner(active)
        self.footprints = MeasuredFootprints(view, active, known_bytes)
        self._ollama = OllamaDaemons(view, active)
        sleeping = SleepingEngines(hosts, view, lambda: [e.name for e in active.models], loop.wake_watchers)
        loop.feed.listeners.append(sleeping.decided)
        active.listeners.append(self._orphans.served_changed)

    def usage(self) -> EngineUsage:
        """Return the GPU memory that our engines hold outside of the processes of residencies."""
        return replace(self._ollama.usage(), asleep=frozenset(self._hosts.asleep.values()))

    async def ask_once(self) -> None:
        """Ask Ollama daemons what they have, so that the first loads are planned by more than a guess."""
        await self._ollama.poll()

    async def run(self) -> None:
        """Remove containers that a killed daemon left behind, and watch Ollama daemons, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._orphans.run())
            tasks.create_task(self._ollama.run())
