"""The GPUs of this machine, as input of the strategies and as records of the store."""

from collections.abc import Mapping, Sequence

from cotenant.domain.devices import ComputeMode, Device, DeviceId, DeviceKind, Inventory
from cotenant.services.assign.memory import GpuUse, RunningService, occupied
from cotenant.services.model import Assignment, SeenDevice, Service, ServiceDevice


def service_devices(
    inventory: Inventory,
    claims: Mapping[DeviceId, int],
    services: Sequence[Service],
    assigned: Sequence[Assignment],
) -> tuple[ServiceDevice, ...]:
    """Return every GPU of known size, in index order, with the bytes that services cannot use.

    `claims` are the bytes of the scheduler's models, `assigned` the GPUs on which `services` run now. A GPU
    that cannot be measured or used counts as unhealthy.
    """
    taken = occupied(
        [
            GpuUse(index, _used_bytes(inventory, device, claims), claims.get(device.id, 0))
            for index, device in _gpus(inventory)
        ],
        _running(inventory, services, assigned),
    )
    found = []
    for index, device in _gpus(inventory):
        if device.total_bytes is not None:
            reading, speed = inventory.reading(device), device.bandwidth_bytes_per_s
            healthy = reading.free_bytes is not None and reading.compute_mode is not ComputeMode.PROHIBITED
            total, used = device.total_bytes, taken[index]
            found.append(ServiceDevice(device.id, index, device.name, total, used, speed, healthy))
    return tuple(found)


def seen_devices(inventory: Inventory, at: float) -> tuple[SeenDevice, ...]:
    """Return every GPU as seen at `at` (Unix seconds)."""
    return tuple(
        SeenDevice(
            gpu_index=index,
            device_id=device.id,
            name=device.name,
            total_bytes=device.total_bytes,
            available_bytes=inventory.reading(device).free_bytes,
            compute_capability=".".join(map(str, device.compute_capability or ())) or None,
            last_seen_at=at,
        )
        for index, device in _gpus(inventory)
    )


def _gpus(inventory: Inventory) -> list[tuple[int, Device]]:
    gpus = [device for device in inventory.devices if device.kind is DeviceKind.GPU]
    return [(device.index, device) for device in gpus if device.index is not None]


def _used_bytes(inventory: Inventory, device: Device, claims: Mapping[DeviceId, int]) -> int | None:
    """Return the bytes in use. A static description does not show our models: they are added."""
    used = inventory.reading(device).used_bytes
    is_static = device.described and not inventory.source.is_live
    return used + claims.get(device.id, 0) if used is not None and is_static else used


def _running(
    inventory: Inventory, services: Sequence[Service], assigned: Sequence[Assignment]
) -> list[RunningService]:
    by_service = {each.service: each for each in assigned}
    indices = {device.id: index for index, device in _gpus(inventory)}
    running = []
    for service in services:
        each = by_service.get(service.name, Assignment(service.name))
        index = each.gpu_index if each.device_id is None else indices.get(each.device_id)
        running.append(RunningService(service, index, each.vram_budget_gb))
    return running
