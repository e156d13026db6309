"""Moves services whose GPU is missing to another one until it is back."""

from collections.abc import Sequence
from dataclasses import replace

from cotenant.services.assign.memory import adjusted_budgets, assigned_device, needed_bytes
from cotenant.services.model import Assignment, Service, ServiceDevice, ServiceWarning, WarningKind


def fall_back(
    assignments: Sequence[Assignment], services: Sequence[Service], devices: Sequence[ServiceDevice]
) -> tuple[list[Assignment], list[ServiceWarning]]:
    """Name every GPU by its present index, and move the services of missing GPUs; warn of each that moves.

    They go to the healthy GPU with the most free memory, largest need first, with a budget reduced to what is
    left there; without a healthy GPU they are unpinned. The saved assignment is not changed: the GPU may come
    back.
    """
    named = {service.name: service for service in services}
    healthy = [device for device in devices if device.healthy]
    result: dict[str, Assignment] = {}
    free = {device.id: device.total_bytes - device.occupied_bytes for device in healthy}
    missing = []
    for each in assignments:
        device = assigned_device(each, devices)
        if device is not None:
            result[each.service] = replace(each, gpu_index=device.index, device_id=device.id)
            if device.id in free:
                free[device.id] -= _need(named.get(each.service), each.vram_budget_gb)
        elif each.names_gpu:
            missing.append(each)
        else:
            result[each.service] = each
    warnings = []
    for each in sorted(missing, key=lambda each: -_need(named.get(each.service))):
        service = named.get(each.service)
        if not healthy:
            result[each.service] = Assignment(each.service)
            warnings.append(_warning(each, "is left unpinned: no other GPU is healthy"))
            continue
        chosen = max(healthy, key=lambda device: (free[device.id], -device.index))
        budget = None
        if service is not None:
            taken = replace(chosen, occupied_bytes=chosen.total_bytes - free[chosen.id])
            budget = adjusted_budgets(taken, [(service, None)]).get(service.name)
        free[chosen.id] -= _need(service, budget)
        result[each.service] = Assignment(each.service, chosen.index, chosen.id, budget)
        warnings.append(_warning(each, f"falls back to GPU {chosen.index}"))
    return [result[each.service] for each in assignments], warnings


def _need(service: Service | None, budget_gb: float | None = None) -> int:
    return 0 if service is None else needed_bytes(service, budget_gb)


def _warning(assignment: Assignment, what: str) -> ServiceWarning:
    gpu = assignment.device_id if assignment.gpu_index is None else assignment.gpu_index
    return ServiceWarning(
        WarningKind.GPU_MISSING,
        f"GPU {gpu} is missing. {assignment.service} {what}.",
        service=assignment.service,
        gpu_index=assignment.gpu_index,
    )
