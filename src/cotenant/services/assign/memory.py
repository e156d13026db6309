"""The memory that services need, the budgets that limit it, and what is free while they are placed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.units import GIB, MIB
from cotenant.services.model import Assignment, GpuRef, Service, ServiceDevice, ServiceRole

_HEADROOM_BYTES: Final = 128 * MIB


def needed_bytes(service: Service, budget_gb: float | None = None) -> int:
    """Return the bytes that a service needs on each of its GPUs: by its budget if it takes one, else stated.

    A service on several GPUs is assumed to divide its memory equally. One without a stated need counts as 0:
    it is placed, but no memory is reserved for it.
    """
    need = service.vram_bytes or 0
    if budget_gb is not None and service.budget_env is not None:
        need = round(budget_gb * GIB)
    return -(-need // service.n_gpus)


def divided(service: Service, assignment: Assignment) -> Service:
    """Return a service whose memory is divided over the GPUs of its assignment."""
    return replace(service, n_gpus=max(1, len(assignment.gpus)))


def assigned_devices(assignment: Assignment, devices: Sequence[ServiceDevice]) -> list[ServiceDevice]:
    """Return the GPUs that an assignment names, without those that are missing."""
    return [device for gpu in assignment.gpus if (device := assigned_device(gpu, devices)) is not None]


def assigned_device(gpu: GpuRef, devices: Iterable[ServiceDevice]) -> ServiceDevice | None:
    """Return the GPU that an assignment names; None if it is missing.

    The id counts if there is one: after a renumbering the index may name another GPU.
    """
    for device in devices:
        if gpu.device_id is not None:
            if device.id == gpu.device_id:
                return device
        elif device.index == gpu.gpu_index:
            return device
    return None


def relative_speeds(devices: Sequence[ServiceDevice]) -> dict[DeviceId, float]:
    """Return the speed of each GPU as a share of the fastest.

    It is memory bandwidth; unless that is known for every GPU, total memory is used instead.
    """
    known = [device.speed for device in devices if device.speed is not None]
    ranks = known if len(known) == len(devices) else [device.total_bytes for device in devices]
    fastest = max(ranks, default=0) or 1
    return {device.id: rank / fastest for device, rank in zip(devices, ranks, strict=True)}


Placed = Sequence[tuple[Service, float | None]]
"""Services on one GPU, each with its manual budget; each has the number of its GPUs."""


def placed_by_device(
    services: Iterable[Service], devices: Sequence[ServiceDevice], assignments: Iterable[Assignment]
) -> dict[DeviceId, Placed]:
    """Return what each GPU holds, in the order of `assignments`; those of other services are left out."""
    named = {service.name: service for service in services}
    here: dict[DeviceId, list[tuple[Service, float | None]]] = {device.id: [] for device in devices}
    for each in assignments:
        if each.service in named:
            for device in assigned_devices(each, devices):
                here[device.id].append((divided(named[each.service], each), each.vram_budget_gb))
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
    tenths = {one.name: usable * 10 * needed_bytes(one) // (needed * GIB) * one.n_gpus for one in cut}
    return {name: count / 10 for name, count in tenths.items() if count >= 1}


def least_budgets(
    services: Iterable[Service], devices: Sequence[ServiceDevice], assignments: Iterable[Assignment]
) -> dict[str, float]:
    """Return the adjusted budgets of all GPUs; for a service on several, that of the one with least room."""
    placed = placed_by_device(services, devices, assignments)
    found: dict[str, float] = {}
    for device in devices:
        for name, gb in adjusted_budgets(device, placed[device.id]).items():
            found[name] = min(gb, found.get(name, gb))
    return found


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
