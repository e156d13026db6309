"""Which processes hold GPU memory: what our engines hold, and which processes are theirs."""

import asyncio
from collections.abc import Collection, Mapping
from typing import TypeVar

from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.concurrency.process_groups import group_of, leader_of
from cotenant.domain.devices import Inventory
from cotenant.hardware.gpus.host import HostProbe
from cotenant.interfaces import GpuProbe

E = TypeVar("E")


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


def with_child_processes(inventory: Inventory, engines: Mapping[int, E]) -> dict[int, E]:
    """Return `engines` (by pid) with every GPU process of an engine's process group or family."""
    found = dict(engines)
    for reading in inventory.readings.values():
        for process in reading.processes or ():
            leader = None if process.pid in found else leader_of(process.pid, engines)
            if leader is not None:
                found[process.pid] = engines[leader]
    return found


def sleeping_processes(
    inventory: Inventory, groups: Collection[int], before: Collection[int], engines: Collection[int]
) -> frozenset[int]:
    """Return the GPU processes of sleeping engines that are not among `engines`.

    `groups` are their process groups, `before` their processes in the last inventory: one that has ended has
    no group any more, and the driver may still list it.
    """
    return frozenset(
        process.pid
        for reading in inventory.readings.values()
        for process in reading.processes or ()
        if process.pid not in engines
        and (process.pid in before or process.pid in groups or group_of(process.pid) in groups)
    )
