"""Checks an operator's assignments, and names their GPUs by UUID."""

from collections.abc import Sequence
from dataclasses import replace

from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import BadAssignment
from cotenant.services.model import Assignment, GpuRef, SavedConfiguration, Service, ServiceDevice


def resolved(
    assignments: Sequence[Assignment],
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    saved: SavedConfiguration | None,
) -> tuple[Assignment, ...]:
    """Check the assignments and add each GPU's UUID. Raises BadAssignment with all faults.

    A budget that comes back as it was computed and shown stays an automatic one. A number of GPUs that was
    saved before keeps the GPUs chosen then. "" stands for a service's name that is known to be wrong.
    """
    known = {service.name: service for service in services}
    ids: dict[int | None, DeviceId] = {device.index: device.id for device in devices}
    before = saved.assignments if saved is not None else ()
    automatic = {(each.service, each.vram_budget_gb) for each in before if each.budget_auto}
    seen: set[str] = set()
    found: list[Assignment] = []
    faults: list[BadAssignment] = []
    for number, each in enumerate(assignments):
        name, budget = each.service, each.vram_budget_gb
        last = next((one for one in before if one.service == name), None)
        if last is not None and each.count and each.count == last.count and not each.gpus:
            each = each.on(GpuRef(None, gpu.device_id) for gpu in last.gpus)
        gpus = [GpuRef(gpu.gpu_index, ids.get(gpu.gpu_index, gpu.device_id)) for gpu in each.gpus]
        unknown = [index for index in each.indices if index not in ids]
        wrong = []
        if name and name not in known:
            hint = f"Services: {', '.join(sorted(known)) or 'none'}."
            wrong.append(("service", f"there is no service {name!r}", hint))
        elif name in seen:
            wrong.append(("service", f"{name} is listed already", "Keep one."))
        hint = f"GPUs: {', '.join(str(device.index) for device in devices) or 'none'}."
        for index in unknown:
            field = "gpu_index" if each.gpu_index == index else "more_gpus"
            wrong.append((field, f"there is no GPU {index}", hint))
        if not unknown and len({gpu.device_id for gpu in gpus}) < len(gpus):
            wrong.append(("more_gpus", f"{name or 'it'} names a GPU twice", "Name each once."))
        if budget is not None and name in known and known[name].budget_env is None:
            what = f"{name} has no variable that could pass it a VRAM budget"
            hint = f"Leave the budget out, or set vram_budget_env of {name} in services.items."
            wrong.append(("vram_budget_override", what, hint))
        faults += (BadAssignment(s, hint=h, field=f"assignments[{number}].{field}") for field, s, h in wrong)
        seen |= {name} & known.keys()
        found.append(replace(each.on(gpus), budget_auto=each.budget_auto or (name, budget) in automatic))
    if faults:
        raise BadAssignment.of(*faults)
    return tuple(found)
