"""Wires the hosts of all kinds of engines with the monitors of those that are not exactly one process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cotenant.clock import Clock
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.monitors.attribution import EngineUsage
from cotenant.daemon.monitors.measured_footprints import Footprints
from cotenant.daemon.monitors.ollama_daemons import OllamaDaemons
from cotenant.daemon.monitors.orphans import OrphanCleaner
from cotenant.daemon.monitors.process_memory import ProbeMeter
from cotenant.daemon.monitors.sleeping_engines import SleepingEngines
from cotenant.domain.devices import ComputeMode, DeviceId, Inventory
from cotenant.engines.hosts import EngineHosts, HostInputs
from cotenant.engines.process.log_folder import LogFolder
from cotenant.interfaces import GpuProbe


class EngineWiring:
    """The hosts of all kinds, and their watchers once there is something to watch (`attach`)."""

    def __init__(
        self, log_dir: Path, llama_server: Path | None, probe: GpuProbe, inventory: Inventory, clock: Clock
    ) -> None:
        self.hosts = EngineHosts(
            HostInputs(
                LogFolder(log_dir),
                ProbeMeter(probe, clock),
                exclusive=_exclusive_cards(inventory),
                llama_server=llama_server,
                cuda_version=inventory.cuda_version,
            )
        )

    def attach(self, loop: Loop, served: ActiveConfiguration, known_bytes: Mapping[str, int]) -> None:
        """Watch what is served; `known_bytes` is what models took in past runs."""
        self._leftovers = OrphanCleaner(served)
        self._footprints = Footprints(loop, served, known_bytes)
        self._ollama = OllamaDaemons(loop, served)
        self._sleeping = SleepingEngines(self.hosts, loop, lambda: [e.name for e in served.models])
        loop.listeners.append(self._sleeping.decided)

    def usage(self) -> EngineUsage:
        """Return what is held for us by no process of a residency's engine."""
        return replace(self._ollama.usage(), asleep=frozenset(self.hosts.asleep.values()))

    def served_changed(self) -> None:
        """Take in that other models may be served now."""
        self._leftovers.served_changed()

    def measured(self) -> None:
        """Take in the last Readings."""
        self._footprints.measured()

    async def run(self) -> None:
        """Remove containers that a killed daemon left behind, and watch Ollama daemons, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leftovers.run())
            tasks.create_task(self._ollama.run())

    async def close(self) -> None:
        """End what sleeps; engines are gone by now."""
        await self.hosts.end_sleeping()


def _exclusive_cards(inventory: Inventory) -> frozenset[DeviceId]:
    return frozenset(
        reading.device_id
        for reading in inventory.readings.values()
        if reading.compute_mode is ComputeMode.EXCLUSIVE_PROCESS
    )
