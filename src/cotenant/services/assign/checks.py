"""Checks an operator's assignments, and names their GPUs by UUID."""

from collections.abc import Sequence
from dataclasses import replace

from cotenant.domain.errors import BadAssignment
from cotenant.services.model import Assignment, SavedConfiguration, Service, ServiceDevice


def resolved(
    assignments: Sequence[Assignment],
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    saved: SavedConfiguration | None,
) -> tuple[Assignment, ...]:
    """Check the assignments and add each GPU's UUID. Raises BadAssignment, which names the field.

    A budget that comes back as it was computed and shown stays an automatic one.
    """
    known = {service.name: service for service in services}
    ids = {device.index: device.id for device in devices}
    before = saved.assignments if saved is not None else ()
    automatic = {(each.service, each.vram_budget_gb) for each in before if each.budget_auto}
    seen: set[str] = set()
    found = []
    for number, each in enumerate(assignments):
        name, index, budget = each.service, each.gpu_index, each.vram_budget_gb
        field = "service"
        if name not in known:
            what = f"there is no service {name!r}"
            hint = f"Services: {', '.join(sorted(known)) or 'none'}."
        elif name in seen:
            what, hint = f"{name} is assigned twice", "Keep one."
        elif index is not None and index not in ids:
            field, what = "gpu_index", f"there is no GPU {index}"
            hint = f"GPUs: {', '.join(map(str, sorted(ids))) or 'none'}."
        elif budget is not None and known[name].budget_env is None:
            field, what = "vram_budget_override", f"{name} has no variable that could pass it a VRAM budget"
            hint = f"Leave the budget out, or set vram_budget_env of {name} in services.items."
        else:
            seen.add(name)
            auto = each.budget_auto or (name, budget) in automatic
            device_id = each.device_id if index is None else ids[index]
            found.append(replace(each, device_id=device_id, budget_auto=auto))
            continue
        raise BadAssignment(what, hint=hint, field=f"assignments[{number}].{field}")
    return tuple(found)
