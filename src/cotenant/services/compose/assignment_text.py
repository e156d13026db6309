"""The label by which a container tells the assignment that it was created with."""

import json
from collections.abc import Mapping
from typing import Any, Final

from cotenant.domain.devices import DeviceId
from cotenant.services.model import Assignment

ASSIGNMENT_LABEL: Final = "cotenant.assignment"


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
