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
    """Check the assignments and add each GPU's UUID. Raises BadAssignment, which names the field.

    A budget that comes back as it was computed and shown stays an automatic one. A number of GPUs that was
    saved before keeps the GPUs chosen then.
    """
    known = {service.name: service for service in services}
    ids: dict[int | None, DeviceId] = {device.index: device.id for device in devices}
    before = saved.assignments if saved is not None else ()
    automatic = {(each.service, each.vram_budget_gb) for each in before if each.budget_auto}
    seen: set[str] = set()
    found = []
    for number, each in enumerate(assignments):
        name, budget = each.service, each.vram_budget_gb
        last = next((one for one in before if one.service == name), None)
        if last is not None and each.count and each.count == last.count and not each.gpus:
            each = each.on(GpuRef(None, gpu.device_id) for gpu in last.gpus)
        unknown = next((index for index in each.indices if index not in ids), None)
        gpus = [GpuRef(gpu.gpu_index, ids.get(gpu.gpu_index, gpu.device_id)) for gpu in each.gpus]
        field = "service"
        if name not in known:
            what = f"there is no service {name!r}"
            hint = f"Services: {', '.join(sorted(known)) or 'none'}."
        elif name in seen:
            what, hint = f"{name} is listed already", "Keep one."
        elif unknown is not None:
            field = "gpu_index" if each.gpu_index == unknown else "more_gpus"
            what = f"there is no GPU {unknown}"
            hint = f"GPUs: {', '.join(str(device.index) for device in devices) or 'none'}."
        elif len({gpu.device_id for gpu in gpus}) < len(gpus):
            field, what, hint = "more_gpus", f"{name} names a GPU twice", "Name each once."
        elif budget is not None and known[name].budget_env is None:
            field, what = "vram_budget_override", f"{name} has no variable that could pass it a VRAM budget"
            hint = f"Leave the budget out, or set vram_budget_env of {name} in services.items."
        else:
            seen.add(name)
            auto = each.budget_auto or (name, budget) in automatic
            found.append(replace(each.on(gpus), budget_auto=auto))
            continue
        raise BadAssignment(what, hint=hint, field=f"assignments[{number}].{field}")
    return tuple(found)
