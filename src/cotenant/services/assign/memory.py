"""The memory that services need, the budgets that limit it, and what is free while they are placed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.units import GIB, MIB
from cotenant.services.model import Assignment, Service, ServiceDevice, ServiceRole

_HEADROOM_BYTES: Final = 128 * MIB


def needed_bytes(service: Service, budget_gb: float | None = None) -> int:
    """Return the bytes that a service is assumed to need: its budget if it takes one, else its stated need.

    A service without a stated need counts as 0: it is placed, but no memory is reserved for it.
    """
    if budget_gb is not None and service.budget_env is not None:
        return round(budget_gb * GIB)
    return service.vram_bytes or 0


def assigned_device(assignment: Assignment, devices: Iterable[ServiceDevice]) -> ServiceDevice | None:
    """Return the GPU that an assignment names; None if it is missing or the assignment names none.

    The id counts if there is one: after a renumbering the index may name another GPU.
    """
    for device in devices:
        if assignment.device_id is not None:
            if device.id == assignment.device_id:
                return device
        elif device.index == assignment.gpu_index:
            return device
    return None


Placed = Sequence[tuple[Service, float | None]]
"""Services on one GPU, each with its manual budget."""


def placed_by_device(
    services: Iterable[Service], devices: Sequence[ServiceDevice], assignments: Iterable[Assignment]
) -> dict[DeviceId, Placed]:
    """Return what each GPU holds, in the order of `assignments`; those of other services are left out."""
    named = {service.name: service for service in services}
    here: dict[DeviceId, list[tuple[Service, float | None]]] = {device.id: [] for device in devices}
    for each in assignments:
        device = assigned_device(each, devices)
        if device is not None and each.service in named:
            here[device.id].append((named[each.service], each.vram_budget_gb))
    return {**here}


def adjusted_budgets(device: ServiceDevice, placed: Placed) -> dict[str, float]:
    """Return budgets in GB (2^30 bytes) for services on one GPU that cannot hold all; none if all fit.

    Only services with a budget variable get one, and a manual budget stays. The rule: the GPU's total,
    less what others occupy, less the other services there, less a headroom of 128 MiB, rounded down to 0.1
    GB. Several such services are reduced in proportion to their needs. On the reference GPU, 4,094 MiB with
    329 in use, that is 3.5 GB for one that needs 6.8. A service that would get less than 0.1 GB gets no
    budget, since none would help.
    """
    cut = [service for service, given in placed if adjustable(service, given)]
    others = sum(needed_bytes(service, given) for service, given in placed if not adjustable(service, given))
    left = device.total_bytes - device.occupied_bytes - others
    needed = sum(needed_bytes(service) for service in cut)
    if needed <= left:
        return {}
    usable = left - _HEADROOM_BYTES
    tenths = {service.name: usable * 10 * needed_bytes(service) // (needed * GIB) for service in cut}
    return {name: count / 10 for name, count in tenths.items() if count >= 1}


def adjustable(service: Service, given_gb: float | None) -> bool:
    """Whether Cotenant sets the service's budget."""
    return service.budget_env is not None and given_gb is None and bool(service.vram_bytes)


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

    def most_free(self, among: Sequence[ServiceDevice] = ()) -> ServiceDevice:
        """Return the GPU with the most free bytes, the first of equals, among those given or all."""
        return max(among or self.devices, key=self.free)

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
