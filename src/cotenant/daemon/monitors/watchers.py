"""Reads the cards again and again, and gives the scheduler what it reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.monitors.attribution import NO_USAGE, EngineUsage, with_child_processes
from cotenant.daemon.monitors.readings import device_readings
from cotenant.domain.devices import DeviceId, Inventory
from cotenant.domain.errors import UnknownDevice
from cotenant.domain.residencies import ResidencyId
from cotenant.interfaces import GpuProbe
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.compute_modes import Admission
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead

_RECLAIM_S: Final = 0.05
_BUSY_S: Final = 1.0
_QUIET_S: Final = 10.0


Admissions = Callable[[Inventory, Collection[int]], Mapping[DeviceId, Admission]]
"""Says how many engines each device admits, given the processes on it that are or were ours."""


class CardWatcher:
    """Reads the cards and tells the loop: each second while anything is loaded, and where an engine changes.

    Another model may wait for the memory of one that ended: until it is seen back, it is looked for often.

    Described cards and host RAM are read once: nothing that the engines do shows in them.
    """

    def __init__(
        self,
        probe: GpuProbe,
        use: Sequence[str],
        rules: BudgetRules,
        loop: Loop,
        clock: Clock,
        after_reading: Callable[[], None],
        admissions: Admissions = lambda inventory, ours: {},
        measured: Callable[[Inventory | None], None] = lambda _: None,
        usage: Callable[[], EngineUsage] = lambda: NO_USAGE,
    ) -> None:
        self._measured = measured
        self._usage = usage
        self._admissions = admissions
        self._last: tuple[Inventory, float, Mapping[int, ResidencyId]] | None = None
        self._probe = probe
        self._use = use
        self._rules = rules
        self._loop = loop
        self._clock = clock
        self._after_reading = after_reading
        self._real = False
        self._took_s = 0.0

    @property
    def last(self) -> Inventory | None:
        """What was measured last; None where the driver is gone."""
        return None if self._last is None else self._last[0]

    def read(self, inventory: Inventory) -> None:
        """Tell the loop what an inventory says."""
        self._real = inventory.source.is_live
        self._tell(inventory)

    async def run(self) -> None:
        """Read until cancelled."""
        while self._real:
            await self._pause()
            engines = self._loop.effects.pids()
            began = self._clock.now()
            inventory = await run_in_detached_thread(self._probe.inventory)
            self._took_s = self._clock.now() - began
            # Dated by its beginning: what ends meanwhile is not seen to be gone.
            self._tell(self._selected(inventory), engines, began)

    async def _pause(self) -> None:
        if self._loop.reclaims:
            # Of a core, at most a fifth: with many cards a look takes its time.
            await asyncio.sleep(max(_RECLAIM_S, 4 * self._took_s))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BUSY_S if self._loop.effects.running else _QUIET_S):
                await self._loop.memory_changed()

    def republish(self) -> None:
        """Tell the loop the same measurements: what devices admit has changed."""
        if self._last is not None:
            self._loop.post(DevicesRead(self._clock.now(), self._readings(*self._last)))

    def _selected(self, inventory: Inventory) -> Inventory | None:
        """Keep to the cards allowed; none at all where the driver is gone, never host RAM in their place."""
        if not inventory.source.is_live:
            return None
        present = []
        for name in self._use:
            try:
                inventory.select([name])
            except UnknownDevice:
                continue
            present.append(name)
        if self._use and not present:
            return None
        return inventory.select(present)

    def _tell(
        self,
        inventory: Inventory | None,
        before: Mapping[int, ResidencyId] | None = None,
        measured_at: float | None = None,
    ) -> None:
        now = self._clock.now()
        if inventory is not None:
            self._loop.readings = inventory.readings
        at = now if measured_at is None else measured_at
        # Those that ended while the cards were measured, too: what they held is nobody else's.
        engines = {**(before or {}), **self._loop.effects.pids()}
        if inventory is not None:
            engines = with_child_processes(inventory, engines)
        self._last = None if inventory is None else (inventory, at, engines)
        readings = () if inventory is None else self._readings(inventory, at, engines)
        self._loop.post(DevicesRead(now, readings))
        self._measured(inventory)
        self._after_reading()

    def _readings(
        self, inventory: Inventory, at: float, engines: Mapping[int, ResidencyId]
    ) -> tuple[DeviceReading, ...]:
        admissions = self._admissions(inventory, engines)
        return device_readings(inventory, self._rules, engines, at, admissions, self._usage())
