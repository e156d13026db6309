"""Where devices stand: their planned order, their kinds, and the machines that they are part of."""

from collections.abc import Collection, Iterable

from cotenant.domain.devices import Device, DeviceId
from cotenant.planning.device_needs import Kind, alike


class DeviceMap:
    """Devices in planned order."""

    def __init__(self) -> None:
        self.order: list[DeviceId] = []
        self._places: dict[DeviceId, int] = {}
        self._kinds: dict[DeviceId, Kind] = {}
        self._singles: dict[DeviceId, Kind] = {}
        self._known_kinds: dict[Device, Kind] = {}
        self._nodes: dict[str | None, tuple[DeviceId, ...]] = {}
        self._node_of: dict[DeviceId, str | None] = {}
        self._known: dict[DeviceId, Device] = {}

    def arrange(self, devices: Iterable[Device]) -> None:
        """Take these devices in place of those before."""
        nodes: dict[str | None, list[DeviceId]] = {}
        self._node_of = {}
        for device in devices:
            self.update(device)
            self._node_of[device.id] = device.node
            nodes.setdefault(device.node, []).append(device.id)
        self.order = [*self._node_of]
        self._places = {device: place for place, device in enumerate(self.order)}
        self._nodes = {name: tuple(members) for name, members in nodes.items()}

    def update(self, device: Device) -> None:
        """Take in what has changed of a device."""
        if self._known.get(device.id) is device:
            return
        self._known[device.id] = device
        common = alike(device)
        self._kinds[device.id] = self._known_kinds.setdefault(common, Kind(common))
        self._singles[device.id] = Kind(device)

    def place(self, device: DeviceId) -> int:
        """Return where a device stands in the planned order."""
        return self._places[device]

    def kind(self, device: DeviceId, *, single: bool = False) -> Kind:
        """Return the kind of a device; with `single` one that no other device is of."""
        return self._singles[device] if single else self._kinds[device]

    def nodes(self) -> Collection[tuple[DeviceId, ...]]:
        """Return the devices of each machine."""
        return self._nodes.values()

    def node_names(self) -> Collection[str | None]:
        """Return the names of the machines, None for this one."""
        return self._nodes.keys()

    def name_of_node(self, device: DeviceId) -> str | None:
        """Return the name of the machine that a device is part of."""
        return self._node_of[device]

    def node_of(self, device: DeviceId) -> tuple[DeviceId, ...]:
        """Return the devices of the machine that a device is part of."""
        return self._nodes[self._node_of[device]]
