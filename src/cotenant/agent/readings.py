"""Measures the devices of an agent's machine, and reports what has changed."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.agent.engines import AgentEngines
from cotenant.agent.events import EventLog
from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.domain.devices import DeviceId, Inventory
from cotenant.domain.units import MIB
from cotenant.hardware.process_memory import with_child_processes
from cotenant.interfaces import GpuProbe
from cotenant.nodes.messages import ReadingTaken
from cotenant.planning.compute_modes import Admission

_RECLAIM_S: Final = 0.05
_RECLAIM_FOR_S: Final = 5.0
_RECLAIM_REPORT_S: Final = 0.5
_BUSY_S: Final = 1.0
_QUIET_S: Final = 10.0
_CHANGE_BYTES: Final = 64 * MIB


Admissions = Callable[[Inventory, Mapping[int, str]], tuple[Mapping[DeviceId, Admission], tuple[str, ...]]]
"""Returns how many engines devices admit, where that is limited, and sentences about that."""


@dataclass(eq=False)
class Readings:
    """Reads the devices every second while engines run, else every ten, and often when one has just ended.

    A reading is reported if memory has changed by more than 64 MiB since the last report, if a process has
    come or gone, if other engines are admitted, and every ten seconds; every half a second while memory is
    about to be free, since somebody waits to see that.
    """

    probe: GpuProbe
    clock: Clock
    engines: AgentEngines
    events: EventLog
    admissions: Admissions = lambda *_: ({}, ())
    last: ReadingTaken | None = None
    _reported: ReadingTaken | None = None
    _reported_at: float = 0.0
    _before: Mapping[int, str] = field(default_factory=dict)
    _ended_at: float = -_RECLAIM_FOR_S
    _took_s: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def engine_changed(self) -> None:
        """Look at once: an engine has started or ended."""
        self._changed.set()

    def engine_ended(self) -> None:
        """Look often for a while: memory is about to be free."""
        self._ended_at = self.clock.now()
        self._changed.set()

    async def measure(self) -> ReadingTaken:
        """Measure every device now; a call into a driver that hangs is left behind if this is cancelled."""
        before = self.engines.pids()
        began = self.clock.now()
        inventory = await run_in_detached_thread(self.probe.inventory)
        self._took_s = self.clock.now() - began
        # The memory of an engine that ended meanwhile still counts as its own.
        engines = with_child_processes(inventory, {**before, **self.engines.pids()})
        admissions, warnings = self.admissions(inventory, engines)
        self.last = ReadingTaken(inventory, engines, admissions, warnings)
        return self.last

    async def run(self) -> None:
        """Measure and report until cancelled."""
        while True:
            found = await self.measure()
            now = self.clock.now()
            every_s = _RECLAIM_REPORT_S if self._is_reclaiming(now) else _QUIET_S
            due = self._reported is None or now - self._reported_at >= every_s
            if due or (self._reported is not None and _differ(self._reported, found)):
                self.events.add(found)
                self._reported, self._reported_at = found, now
            await self._pause()

    def _is_reclaiming(self, now: float) -> bool:
        return now - self._ended_at < _RECLAIM_FOR_S

    async def _pause(self) -> None:
        if self._is_reclaiming(self.clock.now()):
            # At most a fifth of a core: with many cards a reading takes long.
            await asyncio.sleep(max(_RECLAIM_S, 4 * self._took_s))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BUSY_S if len(self.engines) else _QUIET_S):
                await self._changed.wait()
        self._changed.clear()


def _differ(one: ReadingTaken, other: ReadingTaken) -> bool:
    """Whether two readings differ in what decisions are made by."""
    before, after = one.inventory, other.inventory
    if (before.devices, before.problems) != (after.devices, after.problems):
        return True
    if replace(one, inventory=after) != replace(other, seq=one.seq):
        return True
    pools = [(before, after)]
    if before.host is not None and after.host is not None:
        pools.append((before.host, after.host))
    return any(_moved(first, second, id_) for first, second in pools for id_ in second.readings)


def _moved(before: Inventory, after: Inventory, id_: DeviceId) -> bool:
    if id_ not in before.readings:
        return True
    one, other = before.readings[id_], after.readings[id_]
    pids = [{each.pid for each in reading.processes or ()} for reading in (one, other)]
    same = (one.problem, one.compute_mode) == (other.problem, other.compute_mode) and pids[0] == pids[1]
    return not same or abs((one.free_bytes or 0) - (other.free_bytes or 0)) > _CHANGE_BYTES
