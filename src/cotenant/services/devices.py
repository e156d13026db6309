"""The GPUs of this machine, as input of the strategies and as records of the store."""

from collections.abc import Collection, Mapping, Sequence

from cotenant.domain.devices import ComputeMode, Device, DeviceId, DeviceKind, Inventory
from cotenant.services.assign.memory import divided, needed_bytes
from cotenant.services.model import Assignment, SeenDevice, Service, ServiceDevice


def service_devices(
    inventory: Inventory,
    claims: Mapping[DeviceId, int],
    services: Sequence[Service],
    assigned: Sequence[Assignment],
    running: Collection[str] | None = None,
) -> tuple[ServiceDevice, ...]:
    """Return every GPU of known size, in index order, with the bytes that services cannot use.

    `claims` are the bytes of the scheduler's models, `assigned` the GPUs on which `services` run or ran last,
    `running` the names of those that are seen to run; None if that is not known. A GPU that cannot be
    measured or used counts as unhealthy.

    A service that runs on a GPU must not displace itself. Drivers do not always report the owner of memory,
    so what is in use beyond the scheduler's claims is attributed to the running services up to the sum of
    their needs; the rest is foreign. Occupied is foreign plus claimed. A service that is not pinned is
    assumed to be on the GPU of lowest index, where CUDA puts it. If the use is unknown, only claims count.

    Where nothing shows which services run (no container engine answers, or the GPUs are only described), all
    are assumed to; what is attributed to those that are not seen is `assumed_bytes`. A static description
    does not change with what runs: there `assigned` does not count.
    """
    gpus = _gpus(inventory)
    indices = {device.id: index for index, device in gpus}
    lowest = min(indices.values(), default=None)
    assignments = {each.service: each for each in assigned if inventory.source.is_live}
    seen = running or ()
    observable = running is not None and inventory.source.is_live
    own: dict[int | None, int] = {}
    own_seen: dict[int | None, int] = {}
    for service in services:
        if observable and service.name not in seen:
            continue
        each = assignments.get(service.name, Assignment(service.name))
        named = [gpu.gpu_index if gpu.device_id is None else indices.get(gpu.device_id) for gpu in each.gpus]
        need = needed_bytes(divided(service, each), each.vram_budget_gb)
        here: list[int | None] = [index for index in named if index is not None]
        for index in here or [lowest]:
            own[index] = own.get(index, 0) + need
            if service.name in seen:
                own_seen[index] = own_seen.get(index, 0) + need
    found = []
    for index, device in gpus:
        if device.total_bytes is not None:
            reading, claimed = inventory.reading(device), claims.get(device.id, 0)
            # A static description does not show our models.
            unseen = claimed if device.described and not inventory.source.is_live else 0
            used = claimed if reading.used_bytes is None else reading.used_bytes + unseen
            others = max(0, used - claimed)
            attributed = min(others, own.get(index, 0))
            healthy = reading.free_bytes is not None and reading.compute_mode is not ComputeMode.PROHIBITED
            found.append(
                ServiceDevice(
                    device.id,
                    index,
                    device.name,
                    device.total_bytes,
                    claimed + others - attributed,
                    device.bandwidth_bytes_per_s,
                    healthy,
                    max(0, attributed - own_seen.get(index, 0)),
                    device.vendor,
                    device.render_node,
                )
            )
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
