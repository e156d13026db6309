"""Measures what processes hold, for engines that must check that their memory is freed."""

import asyncio

from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.concurrency.process_groups import group_of
from cotenant.hardware.gpus.host import HostProbe
from cotenant.interfaces import GpuProbe


class ProbeMeter:
    """A meter that asks the driver."""

    def __init__(self, probe: GpuProbe, clock: Clock) -> None:
        self._probe = probe
        self._host = HostProbe(clock)

    async def held_bytes(self, group: int) -> int | None:
        """Return what a process group holds on all GPUs; None if no driver reports it."""
        return await run_in_detached_thread(lambda: self._held(group))

    async def free_host_bytes(self) -> int | None:
        """Return the host RAM that is free; None if it is unknown."""
        return await asyncio.to_thread(lambda: self._host.memory().available_bytes)

    def _held(self, group: int) -> int | None:
        inventory = self._probe.inventory()
        if not inventory.source.is_live:
            return None
        held = 0
        for reading in inventory.readings.values():
            for process in reading.processes or ():
                if group_of(process.pid) != group:
                    continue
                if process.used_bytes is None:
                    return None
                held += process.used_bytes
        return held
