"""How an assignment is written to compose files: its device, its budget, and the container's label."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cotenant.domain.devices import DeviceId
from cotenant.services.model import Assignment, DeviceNames, ServiceDevice

ASSIGNMENT_LABEL: Final = "cotenant.assignment"


def device_of(assignment: Assignment, devices: Sequence[ServiceDevice]) -> ServiceDevice | None:
    """Return the GPU of an assignment: by its id at any index, else by its index."""
    same = [device for device in devices if device.id == assignment.device_id]
    return next(iter(same or [device for device in devices if device.index == assignment.gpu_index]), None)


def device_name(assignment: Assignment, devices: Sequence[ServiceDevice], names: DeviceNames) -> str:
    """Return the entry of `device_ids` for a pinned service; a missing GPU keeps its former name."""
    device = device_of(assignment, devices)
    if names is DeviceNames.UUID:
        uuid = device.id if device else assignment.device_id
        if uuid is not None:
            return str(uuid)
    return str(device.index if device else assignment.gpu_index)


def budget_text(gb: float) -> str:
    """Return a budget as a service reads it: `3.5`, `4`."""
    return f"{gb:.6f}".rstrip("0").rstrip(".")


def assignment_label(assignment: Assignment) -> str:
    """Return the value of the label from which a container's assignment is read back."""
    value: dict[str, Any] = {"gpu": assignment.gpu_index}
    if assignment.device_id is not None:
        value["device_id"] = assignment.device_id
    if assignment.vram_budget_gb is not None:
        value["vram_budget"] = assignment.vram_budget_gb
    return json.dumps(value, separators=(",", ":"))


def labelled_assignment(service: str, labels: Mapping[str, str]) -> Assignment | None:
    """Read a container's label; None without one, or with one that Cotenant did not write."""
    try:
        value = json.loads(labels.get(ASSIGNMENT_LABEL, "null"))
        gpu, device_id, budget = value["gpu"], value.get("device_id"), value.get("vram_budget")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(gpu, bool) or not isinstance(gpu, int):
        return None
    return Assignment(
        service,
        gpu,
        DeviceId(device_id) if isinstance(device_id, str) else None,
        float(budget) if isinstance(budget, (int, float)) else None,
    )


def same_assignment(one: Assignment | None, other: Assignment | None) -> bool:
    """Whether two assignments create the same container; without a GPU both leave it unpinned."""
    if one is None or one.gpu_index is None or other is None or other.gpu_index is None:
        return (one is None or one.gpu_index is None) and (other is None or other.gpu_index is None)
    return one == other
