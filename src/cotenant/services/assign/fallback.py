"""Moves services whose GPU is missing to another one until it is back."""

from collections.abc import Sequence
from dataclasses import replace

from cotenant.services.assign.memory import (
    FreeMemory,
    assigned_device,
    divided,
    least_budgets,
    needed_bytes,
)
from cotenant.services.model import (
    Assignment,
    GpuRef,
    SavedConfiguration,
    Service,
    ServiceDevice,
    ServiceWarning,
    Strategy,
    WarningKind,
)


def fall_back(
    assignments: Sequence[Assignment], services: Sequence[Service], devices: Sequence[ServiceDevice]
) -> tuple[list[Assignment], list[ServiceWarning]]:
    """Name every GPU by its present index, and move the services of missing GPUs; warn of each that moves.

    They go to the healthy GPU with the most free memory, largest need first; without a healthy GPU they are
    unpinned, or stay on the others of their GPUs. `all` GPUs are those of now. A budget given by hand stays.
    Automatic budgets on a GPU that gets a service are computed anew. The saved assignment is not changed: the
    GPU may come back.
    """
    named = {service.name: service for service in services}
    memory = FreeMemory([device for device in devices if device.healthy])
    result: dict[str, Assignment] = {}
    missing = []
    for each in assignments:
        if each.count == "all":
            each = each.on(device.ref for device in devices)
        service = divided(named.get(each.service, Service(each.service)), each)
        here = []
        for gpu in each.gpus:
            device = assigned_device(gpu, devices)
            if device is not None:
                here.append(device.ref)
                if device.healthy:
                    memory.place(service, needed_bytes(service, each.vram_budget_gb), device)
            else:
                missing.append((service, each, gpu, needed_bytes(service, _bare(each).vram_budget_gb)))
        result[each.service] = each.on(here)
    warnings = []
    joined = set()
    for service, each, gpu, need in sorted(missing, key=lambda one: -one[3]):
        kept = result[each.service].gpus
        free = [device for device in memory.devices if device.id not in {one.device_id for one in kept}]
        if free:
            chosen = memory.most_free(free)
            memory.place(service, need, chosen)
            joined.add(chosen.id)
            result[each.service] = result[each.service].on([*kept, chosen.ref])
            warnings.append(_warning(each, gpu, f"falls back to GPU {chosen.index}"))
        elif kept:
            warnings.append(_warning(each, gpu, "uses the others of its GPUs"))
        else:
            result[each.service] = replace(_bare(each).on(()), budget_auto=False)
            warnings.append(_warning(each, gpu, "is left unpinned: no other GPU is healthy"))
    here_too = [each for each in result.values() if any(gpu.device_id in joined for gpu in each.gpus)]
    bare = {each.service: _bare(each) for each in here_too}
    result |= bare
    budgets = least_budgets(services, devices, result.values())
    for name in bare.keys() & budgets.keys():
        result[name] = replace(bare[name], vram_budget_gb=budgets[name], budget_auto=True)
    return [result[each.service] for each in assignments], warnings


def _bare(assignment: Assignment) -> Assignment:
    return replace(assignment, vram_budget_gb=None) if assignment.budget_auto else assignment


def _warning(assignment: Assignment, missing: GpuRef, what: str) -> ServiceWarning:
    gpu = missing.device_id if missing.gpu_index is None else missing.gpu_index
    return ServiceWarning(
        WarningKind.GPU_MISSING,
        f"GPU {gpu} is missing. {assignment.service} {what}.",
        service=assignment.service,
        gpu_index=missing.gpu_index,
    )


def kept_assignments(
    strategy: Strategy,
    manual: Sequence[Assignment],
    devices: Sequence[ServiceDevice],
    saved: SavedConfiguration | None,
) -> Sequence[Assignment]:
    """Return the assignments that a strategy must keep; while no GPU can be chosen, also what was saved."""
    if strategy is Strategy.MANUAL or saved is None or any(gpu.healthy for gpu in devices):
        return manual
    named = {each.service for each in manual}
    return (*manual, *(each for each in saved.assignments if each.service not in named))
