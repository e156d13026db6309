"""The devices of all machines, from what their agents report."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cotenant.daemon.core.loop import Loop
from cotenant.daemon.monitors.readings import device_readings
from cotenant.domain.devices import Device, DeviceKind, Inventory
from cotenant.domain.residencies import ResidencyId
from cotenant.domain.vendors import InventorySource
from cotenant.nodes.messages import ReadingTaken
from cotenant.nodes.spanning import engines_of
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.events import DevicesRead

_LOG = logging.getLogger(__name__)
_NOTHING = Inventory(InventorySource.HOST, (), {})


class NodeCards:
    """Posts what a machine's agent measured, as `CardWatcher` does of this machine.

    `use` are the names of the devices to use, none for all. `listeners` get the devices of all machines
    whenever one was measured.
    """

    def __init__(self, use: Sequence[str], rules: BudgetRules, loop: Loop) -> None:
        self._use = use
        self._rules = rules
        self._loop = loop
        self._last: dict[str, ReadingTaken] = {}
        self._warned: set[str] = set()
        self.listeners: list[Callable[[Inventory | None], None]] = []

    @property
    def last(self) -> Inventory:
        """The devices of all machines that are not lost, as last measured."""
        found = [self._inventory(node, reading) for node, reading in self._last.items()]
        if not found:
            return _NOTHING
        hosts = [each.host for each in found if each.host is not None]
        return replace(
            found[0],
            devices=tuple(device for each in found for device in each.devices),
            readings={id_: reading for each in found for id_, reading in each.readings.items()},
            problems=tuple(problem for each in found for problem in each.problems),
            host=None
            if not hosts
            else replace(
                hosts[0],
                devices=tuple(device for each in hosts for device in each.devices),
                readings={id_: reading for each in hosts for id_, reading in each.readings.items()},
            ),
        )

    async def run(self) -> None:
        """Return: agents measure, and report that."""

    def read(self, inventory: Inventory) -> None:
        """Ignore the devices of this machine: its agent reports them, if it has one."""

    def take(self, node: str, reading: ReadingTaken) -> None:
        """Post what an agent measured."""
        self._last[node] = reading
        for text in {*reading.warnings} - self._warned:
            self._warned.add(text)
            _LOG.warning("%s: %s", node, text)
        self._post(node)
        self._tell()

    def lost(self, node: str) -> None:
        """Drop the devices of a machine that is lost."""
        self._last.pop(node, None)
        self._loop.record_readings({}, node)
        self._tell()

    def republish(self) -> None:
        """Post the last Readings again: what devices admit has changed."""
        for node in self._last:
            self._post(node)

    def devices_of(self, node: str) -> Sequence[Device]:
        """Return the devices of a machine that are used."""
        reading = self._last.get(node)
        return () if reading is None else self._inventory(node, reading).devices

    def host_of(self, node: str | None) -> Inventory | None:
        """Return a machine's RAM, as last measured; None if it is unknown."""
        reading = None if node is None else self._last.get(node)
        if node is None or reading is None:
            return None
        inventory = reading.inventory.on_node(node)
        return inventory if inventory.source is InventorySource.HOST else inventory.host

    def _inventory(self, node: str, reading: ReadingTaken) -> Inventory:
        inventory = reading.inventory.on_node(node)
        if not self._use:
            return inventory
        kept = tuple(
            device
            for device in inventory.devices
            if device.kind is DeviceKind.HOST or any(device.is_named(name) for name in self._use)
        )
        return replace(inventory, devices=kept)

    def _post(self, node: str) -> None:
        reading = self._last[node]
        inventory, now = self._inventory(node, reading), self._loop.clock.now()
        ours = self._residencies(node)
        engines = {pid: ours[id_] for pid, id_ in reading.engines.items() if id_ in ours}
        self._loop.record_readings(inventory.readings, node)
        held = (engines, now, reading.admissions)
        readings = device_readings(inventory, self._rules, *held)
        self._loop.post(DevicesRead(now, readings, node))

    def _residencies(self, node: str) -> Mapping[str, ResidencyId]:
        """Return the residencies on a machine, by the agent's names for their engines."""
        return {
            engine.id: residency
            for residency, running in self._loop.effects.running.items()
            for engine in engines_of(running.engine)
            if engine.node == node
        }

    def _tell(self) -> None:
        last = self.last
        for listener in self.listeners:
            listener(last)
