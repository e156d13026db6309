"""What the daemon looks at by itself: its cards, its configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.clock import Clock
from cotenant.config.configuration import Configuration
from cotenant.config.difference import Changes, diff
from cotenant.config.watch import Change, Watched, watch
from cotenant.daemon.fleet import spec_of
from cotenant.daemon.loop import Loop
from cotenant.daemon.readings import device_readings
from cotenant.daemon.recorder import expected_s
from cotenant.domain.devices import Inventory, InventorySource
from cotenant.domain.errors import BadSetting, UnknownDevice
from cotenant.domain.records import LoadTimes
from cotenant.interfaces import GpuProbe
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.events import DevicesRead, LoadAsked, ModelsChanged

_LOG = logging.getLogger(__name__)
_BUSY_S: Final = 1.0
_QUIET_S: Final = 10.0


class CardWatcher:
    """Reads the cards and tells the loop, each second while anything is loaded.

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
    ) -> None:
        self._probe = probe
        self._use = use
        self._rules = rules
        self._loop = loop
        self._clock = clock
        self._after_reading = after_reading
        self._real = False

    def read(self, inventory: Inventory) -> None:
        """Tell the loop what an inventory says."""
        self._real = inventory.source is InventorySource.NVML
        self._tell(inventory)

    async def run(self) -> None:
        """Read until cancelled."""
        while self._real:
            await asyncio.sleep(_BUSY_S if self._loop.effects.running else _QUIET_S)
            inventory = await asyncio.to_thread(self._probe.inventory)
            self._tell(self._selected(inventory))

    def _selected(self, inventory: Inventory) -> Inventory | None:
        """Keep to the cards allowed; none at all where the driver is gone, never host RAM in their place."""
        if inventory.source is not InventorySource.NVML:
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

    def _tell(self, inventory: Inventory | None) -> None:
        now = self._clock.now()
        pids = self._loop.effects.pids()
        readings = () if inventory is None else device_readings(inventory, self._rules, pids, now)
        self._loop.post(DevicesRead(now, readings))
        self._after_reading()


@dataclass(slots=True)
class Served:
    """The configuration in force and how to read it again; a broken one leaves it as it is."""

    configuration: Configuration
    reread: Callable[[Change], Configuration] | None
    loop: Loop
    clock: Clock
    use_fit_params: bool = False
    load_times: Mapping[str, LoadTimes] = field(default_factory=dict)

    def announce(self, *, replaced: frozenset[str] = frozenset()) -> None:
        """Have the loop serve the models of the configuration."""
        rules = self.configuration.devices.rules
        specs = tuple(
            spec_of(
                entry,
                rules,
                expected_s(self.load_times.get(entry.name)),
                use_fit_params=self.use_fit_params,
            )
            for entry in self.configuration.models
        )
        self.loop.serve(self.configuration.models, ModelsChanged(self.clock.now(), specs, replaced))

    async def reload(self, change: Change | None = None) -> Sequence[str]:
        """Read it again and take over what changed, in sentences. Raises BadSetting and changes nothing."""
        if self.reread is None:
            raise BadSetting(
                "there is no configuration file to read again",
                hint="Start with --config, or a cotenant.yaml.",
            )
        fresh = self._with_what_was_learned(await asyncio.to_thread(self.reread, change or Change()))
        changes = diff(self.configuration, fresh)
        if changes:
            self._take_over(fresh, changes)
        return changes.sentences()

    def _with_what_was_learned(self, fresh: Configuration) -> Configuration:
        """Carry the overheads learned from past runs over: no file says them."""
        overheads = self.configuration.devices.rules.overheads
        rules = replace(fresh.devices.rules, overheads=overheads)
        return replace(fresh, devices=replace(fresh.devices, rules=rules))

    def _take_over(self, fresh: Configuration, changes: Changes) -> None:
        for name in changes.settings:
            _LOG.warning("%s changed: it takes effect at the next start", name)
        self.configuration = fresh
        self.announce(replaced=frozenset(entry.name for entry in changes.reloaded))
        for entry in (*changes.added, *changes.reloaded):
            if entry.preload:
                self.loop.post(LoadAsked(self.clock.now(), entry.name))

    async def watch(self) -> None:
        """Reload whenever the files change, until cancelled."""
        if self.reread is None:
            return
        async for change in watch(self._watched, self.clock):
            await self._reload_quietly(change)

    async def _reload_quietly(self, change: Change) -> None:
        try:
            for sentence in await self.reload(change):
                _LOG.info("configuration: %s", sentence)
        except BadSetting as error:
            _LOG.error("the configuration was left as it was: %s (%s)", error.message, error.hint)

    def _watched(self) -> Watched:
        path = self.configuration.path
        return Watched(() if path is None else (path,), self.configuration.models_dir)
