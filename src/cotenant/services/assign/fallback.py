"""Moves services whose GPU is missing to another one until it is back."""

from collections.abc import Sequence
from dataclasses import replace

from cotenant.services.assign.memory import FreeMemory, adjusted_budgets, assigned_device, needed_bytes
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
    wanted = [(named.get(each.service, Service(each.service)), each) for each in assignments]
    memory = FreeMemory([device for device in devices if device.healthy])
    result: dict[str, Assignment] = {}
    missing = []
    for service, each in wanted:
        device = assigned_device(each, devices)
        if device is not None:
            result[each.service] = replace(each, gpu_index=device.index, device_id=device.id)
            if device.healthy:
                memory.place(service, needed_bytes(service, each.vram_budget_gb), device)
        elif each.names_gpu:
            missing.append((service, each))
        else:
            result[each.service] = each
    warnings = []
    for service, each in sorted(missing, key=lambda one: -needed_bytes(one[0])):
        if not memory.devices:
            result[each.service] = Assignment(each.service)
            warnings.append(_warning(each, "is left unpinned: no other GPU is healthy"))
            continue
        chosen = memory.most_free()
        taken = replace(chosen, occupied_bytes=chosen.total_bytes - memory.free(chosen))
        budget = adjusted_budgets(taken, [(service, None)]).get(service.name)
        memory.place(service, needed_bytes(service, budget), chosen)
        result[each.service] = Assignment(each.service, chosen.index, chosen.id, budget)
        warnings.append(_warning(each, f"falls back to GPU {chosen.index}"))
    return [result[each.service] for each in assignments], warnings


def _warning(assignment: Assignment, what: str) -> ServiceWarning:
    gpu = assignment.device_id if assignment.gpu_index is None else assignment.gpu_index
    return ServiceWarning(
        WarningKind.GPU_MISSING,
        f"GPU {gpu} is missing. {assignment.service} {what}.",
        service=assignment.service,
        gpu_index=assignment.gpu_index,
    )
