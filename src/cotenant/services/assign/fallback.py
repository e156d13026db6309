"""Moves services whose GPU is missing to another one until it is back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cotenant.services.assign.memory import (
    FreeMemory,
    adjusted_budgets,
    assigned_device,
    needed_bytes,
    placed_by_device,
)
from cotenant.services.model import Assignment, Service, ServiceDevice, ServiceWarning, WarningKind


def fall_back(
    assignments: Sequence[Assignment], services: Sequence[Service], devices: Sequence[ServiceDevice]
) -> tuple[list[Assignment], list[ServiceWarning]]:
    """Name every GPU by its present index, and move the services of missing GPUs; warn of each that moves.

    They go to the healthy GPU with the most free memory, largest need first; without a healthy GPU they are
    unpinned. A budget given by hand stays. Automatic budgets on a GPU that gets a service are computed anew.
    The saved assignment is not changed: the GPU may come back.
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
            given = None if each.budget_auto else each.vram_budget_gb
            missing.append((service, each, needed_bytes(service, given)))
        else:
            result[each.service] = each
    warnings = []
    joined = {}
    for service, each, need in sorted(missing, key=lambda one: -one[2]):
        if not memory.devices:
            given = None if each.budget_auto else each.vram_budget_gb
            result[each.service] = Assignment(each.service, vram_budget_gb=given)
            warnings.append(_warning(each, "is left unpinned: no other GPU is healthy"))
            continue
        chosen = memory.most_free()
        memory.place(service, need, chosen)
        joined[chosen.id] = chosen
        result[each.service] = replace(each, gpu_index=chosen.index, device_id=chosen.id)
        warnings.append(_warning(each, f"falls back to GPU {chosen.index}"))
    for device in joined.values():
        result |= _with_budgets(device, services, result)
    return [result[each.service] for each in assignments], warnings


def _with_budgets(
    device: ServiceDevice, services: Sequence[Service], assignments: Mapping[str, Assignment]
) -> dict[str, Assignment]:
    """Return the assignments to a GPU with their automatic budgets computed anew."""
    here = [each for each in assignments.values() if each.device_id == device.id]
    bare = [replace(each, vram_budget_gb=None) if each.budget_auto else each for each in here]
    budgets = adjusted_budgets(device, placed_by_device(services, [device], bare)[device.id])
    return {
        each.service: replace(each, vram_budget_gb=budgets[each.service], budget_auto=True)
        if each.service in budgets
        else each
        for each in bare
    }


def _warning(assignment: Assignment, what: str) -> ServiceWarning:
    gpu = assignment.device_id if assignment.gpu_index is None else assignment.gpu_index
    return ServiceWarning(
        WarningKind.GPU_MISSING,
        f"GPU {gpu} is missing. {assignment.service} {what}.",
        service=assignment.service,
        gpu_index=assignment.gpu_index,
    )
