"""What the daemon looks at by itself: its cards, its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import aside
from cotenant.config.changes import Changes, diff
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.watch import Change, Watched, watch
from cotenant.daemon.core.fleet import as_learned, spec_of
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.monitors.attribution import NOTHING, Beside, with_children
from cotenant.daemon.monitors.readings import device_readings
from cotenant.daemon.monitors.recorder import expected_s
from cotenant.domain.devices import DeviceId, Inventory
from cotenant.domain.errors import BadSetting, UnknownDevice
from cotenant.domain.records import LoadTimes
from cotenant.domain.residencies import ResidencyId
from cotenant.interfaces import GpuProbe
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.compute_modes import Admission
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import DevicesRead, LoadAsked, ModelsChanged

_LOG = logging.getLogger(__name__)
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
        beside: Callable[[], Beside] = lambda: NOTHING,
    ) -> None:
        self._measured = measured
        self._beside = beside
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
            inventory = await aside(self._probe.inventory)
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
                await self._loop.engine_changed()

    def tell_again(self) -> None:
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
            engines = with_children(inventory, engines)
        self._last = None if inventory is None else (inventory, at, engines)
        readings = () if inventory is None else self._readings(inventory, at, engines)
        self._loop.post(DevicesRead(now, readings))
        self._measured(inventory)
        self._after_reading()

    def _readings(
        self, inventory: Inventory, at: float, engines: Mapping[int, ResidencyId]
    ) -> tuple[DeviceReading, ...]:
        admissions = self._admissions(inventory, engines)
        return device_readings(inventory, self._rules, engines, at, admissions, self._beside())


@dataclass(slots=True)
class Served:
    """The configuration in force and how to read it again; a broken one leaves it as it is."""

    configuration: Configuration
    reread: Callable[[Change], Configuration] | None
    loop: Loop
    clock: Clock
    use_fit_params: bool = False
    load_times: Mapping[str, LoadTimes] = field(default_factory=dict)
    changed: Callable[[], None] = lambda: None
    offered: tuple[ModelEntry, ...] = ()
    learned: dict[str, int] = field(default_factory=dict)
    # A reading that began earlier and ends later must not put what it read in place of what is newer.
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """The models of the configuration, and those that hubs offer beside them."""
        names = {name for entry in self.configuration.models for name in (entry.name, *entry.aliases)}
        return (*self.configuration.models, *(e for e in self.offered if e.name not in names))

    def offer(self, entries: tuple[ModelEntry, ...]) -> None:
        """Serve these beside the configuration's."""
        if entries != self.offered:
            self.offered = entries
            self.announce()

    def learn(self, known: Mapping[str, int]) -> None:
        """Plan by what models were seen to take, from their next load on."""
        if any(self.learned.get(name) != count for name, count in known.items()):
            self.learned.update(known)
            self.announce()

    def announce(self, *, replaced: frozenset[str] = frozenset()) -> None:
        """Have the loop serve the models of the configuration, and what hubs offer."""
        rules = self.configuration.devices.rules
        specs = tuple(
            spec_of(
                as_learned(entry, self.learned.get(entry.name)),
                rules,
                expected_s(self.load_times.get(entry.name)),
                use_fit_params=self.use_fit_params,
            )
            for entry in self.models
        )
        self.loop.serve(self.models, ModelsChanged(self.clock.now(), specs, replaced))
        self.changed()

    async def reload(self, change: Change | None = None) -> Sequence[str]:
        """Read it again and take over what changed, in sentences. Raises BadSetting and changes nothing."""
        if self.reread is None:
            raise BadSetting(
                "there is no configuration file to read again",
                hint="Start with --config, or a cotenant.yaml.",
            )
        async with self._turn:
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
