"""Reads the cards periodically and posts the Readings to the scheduler."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.monitors.attribution import NO_USAGE, EngineUsage
from cotenant.daemon.monitors.readings import device_readings
from cotenant.domain.devices import DeviceId, Inventory
from cotenant.domain.errors import UnknownDevice
from cotenant.domain.residencies import ResidencyId
from cotenant.hardware.process_memory import sleeping_processes, with_child_processes
from cotenant.interfaces import GpuProbe
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.compute_modes import Admission
from cotenant.scheduling.events import DevicesRead

_RECLAIM_S: Final = 0.05
_BUSY_S: Final = 1.0
_QUIET_S: Final = 10.0


Admissions = Callable[[Inventory, Collection[int]], Mapping[DeviceId, Admission]]
"""Returns how many engines each device admits, given the processes that are or were ours."""


class CardWatcher:
    """Reads the cards every second while a model is loaded, every ten otherwise, and when memory changes.

    While memory of an engine that has ended is not yet seen to be free, another model may wait for it: the
    cards are then read every 50 ms. Described cards and host RAM are read once, since engines do not show in
    them. `listeners` get each inventory, None while the driver does not answer.
    """

    def __init__(
        self,
        probe: GpuProbe,
        use: Sequence[str],
        rules: BudgetRules,
        loop: Loop,
        view: FleetView,
        clock: Clock,
        *,
        admissions: Admissions = lambda inventory, ours: {},
        usage: Callable[[], EngineUsage] = lambda: NO_USAGE,
    ) -> None:
        self._probe = probe
        self._use = use
        self._rules = rules
        self._loop = loop
        self._view = view
        self._clock = clock
        self._admissions = admissions
        self._usage = usage
        self.listeners: list[Callable[[Inventory | None], None]] = []
        self._last: tuple[Inventory, Mapping[int, ResidencyId], frozenset[int], float] | None = None
        self._asleep: frozenset[int] = frozenset()
        self._is_live = False
        self._took_s = 0.0

    @property
    def last(self) -> Inventory | None:
        """The last inventory; None while the driver does not answer."""
        return None if self._last is None else self._last[0]

    def read(self, inventory: Inventory) -> None:
        """Post the inventory that was made at the start."""
        self._is_live = inventory.source.is_live
        self._post(inventory, {}, frozenset(), self._clock.now())

    async def run(self) -> None:
        """Read until cancelled."""
        while self._is_live:
            await self._pause()
            await self.read_once()

    async def read_once(self) -> None:
        """Read the cards and post what they show."""
        engines, asleep = self._loop.effects.pids(), self._usage().asleep
        began = self._clock.now()
        inventory = await run_in_detached_thread(self._probe.inventory)
        self._took_s = self._clock.now() - began
        # Dated by its start: memory that is freed during the read may not show.
        self._post(self._selected(inventory), engines, asleep, began)

    def host_of(self, node: str | None) -> Inventory | None:
        """Return None: this machine's RAM is measured when it is needed."""
        return None

    def republish(self) -> None:
        """Post the last Readings again: what devices admit has changed."""
        if self._last is not None:
            self._loop.post(self._event(*self._last))

    async def _pause(self) -> None:
        if self._view.is_reclaiming():
            # At most a fifth of a core: with many cards a read takes long.
            await asyncio.sleep(max(_RECLAIM_S, 4 * self._took_s))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BUSY_S if self._loop.effects.running else _QUIET_S):
                await self._view.memory_changed()

    def _selected(self, inventory: Inventory) -> Inventory | None:
        """Keep the configured cards; None if the driver does not answer: host RAM does not replace them."""
        if not inventory.source.is_live:
            return None
        present = []
        for name in self._use:
            with contextlib.suppress(UnknownDevice):
                inventory.select([name])
                present.append(name)
        return None if self._use and not present else inventory.select(present)

    def _post(
        self,
        inventory: Inventory | None,
        before: Mapping[int, ResidencyId],
        asleep: frozenset[int],
        at: float,
    ) -> None:
        """Post an inventory that was read at `at`.

        `before` are the engines' processes from then, `asleep` the groups that slept then: the memory of an
        engine that ended during the read still counts as ours.
        """
        if inventory is None:
            self._last = None
            self._loop.post(DevicesRead(self._clock.now(), ()))
        else:
            engines = with_child_processes(inventory, {**before, **self._loop.effects.pids()})
            self._last = (inventory, engines, asleep, at)
            self._loop.record_readings(inventory.readings)
            self._loop.post(self._event(*self._last))
        for listener in self.listeners:
            listener(inventory)

    def _event(
        self, inventory: Inventory, engines: Mapping[int, ResidencyId], asleep: frozenset[int], at: float
    ) -> DevicesRead:
        admissions, usage = self._admissions(inventory, engines), self._usage()
        self._asleep = sleeping_processes(inventory, asleep | usage.asleep, self._asleep, engines)
        readings = device_readings(inventory, self._rules, engines, at, admissions, usage, self._asleep)
        return DevicesRead(self._clock.now(), readings)
