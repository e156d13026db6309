"""The free memory of each GPU while services are placed one after the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from cotenant.domain.devices import DeviceId
from cotenant.services.model import Service, ServiceDevice, ServiceRole

Chosen = dict[str, ServiceDevice]
"""The GPU of each service, by the service's name."""


class FreeMemory:
    """Free bytes by GPU: total, less what others occupy, less what was placed. May be negative."""

    def __init__(self, devices: Sequence[ServiceDevice]) -> None:
        self.devices = tuple(devices)
        self._free = {device.id: device.total_bytes - device.occupied_bytes for device in devices}
        self._services: dict[DeviceId, list[Service]] = {device.id: [] for device in devices}

    def free(self, device: ServiceDevice) -> int:
        """Return the bytes that are free there."""
        return self._free[device.id]

    def place(self, service: Service, need_bytes: int, device: ServiceDevice) -> None:
        """Count a service as placed."""
        self._free[device.id] -= need_bytes
        self._services[device.id].append(service)

    def empty(self, device: ServiceDevice) -> bool:
        """Whether no service was placed there."""
        return not self._services[device.id]

    def has_llm(self, device: ServiceDevice) -> bool:
        """Whether an LLM was placed there."""
        return any(service.role is ServiceRole.LLM for service in self._services[device.id])

    def most_free(self, among: Iterable[ServiceDevice] | None = None) -> ServiceDevice:
        """Return the GPU with the most free bytes, the first of equals."""
        return max(self.devices if among is None else among, key=self.free)

    def spread(self, services: Iterable[Service], needs: Mapping[str, int]) -> Chosen:
        """Place services largest first, each on the GPU with the most free memory at its turn."""
        return self.place_each(services, needs, lambda need: self.most_free())

    def place_each(
        self, services: Iterable[Service], needs: Mapping[str, int], choose: Callable[[int], ServiceDevice]
    ) -> Chosen:
        """Place services largest first, each on the GPU that `choose` returns; equal ones as given."""
        chosen: Chosen = {}
        for service in sorted(services, key=lambda one: -needs[one.name]):
            device = choose(needs[service.name])
            self.place(service, needs[service.name], device)
            chosen[service.name] = device
        return chosen
