"""Converts the values of `services.model` to responses about GPU configuration.

The response models copy fields of the same name; this file converts only the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from cotenant.domain.decisions import DeviceStatus
from cotenant.domain.units import MIB
from cotenant.gateway.services.schema import (
    ApplyResponse,
    ConfigurationResponse,
    DetectResponse,
    Gpus,
    PreviewResponse,
    SaveResponse,
)
from cotenant.services.model import (
    ApplyStatus,
    Assignment,
    AssignmentPlan,
    Change,
    SeenDevice,
    ServicesView,
    ServiceWarning,
    Strategy,
)

NO_GPUS: Final = "No GPUs detected"
_STRATEGIES: Final = [
    {"name": name, "title": title, "description": description}
    for name, title, description in (
        (Strategy.MANUAL, "Manual", "You control each assignment."),
        (Strategy.VRAM_BASED, "VRAM-based", "Largest models on the GPU with most free memory."),
        (Strategy.LATENCY_OPTIMIZED, "Latency-optimized", "Critical path models on the fastest GPU."),
        (Strategy.ISOLATION_FIRST, "Isolation-first", "The LLM gets a GPU of its own."),
        (Strategy.BALANCED, "Balanced", "GPUs are filled evenly."),
    )
]


def gpus_response(devices: Iterable[DeviceStatus]) -> Gpus:
    """Return the GPUs among the devices, sorted by index."""
    gpus = []
    indexed = [device for device in devices if device.index is not None]
    for device in sorted(indexed, key=lambda device: device.index or 0):
        total, free = device.total_bytes, device.free_bytes
        used = None if total is None or free is None else total - free
        gpus.append({**asdict(device), "vram_total_mb": _mb(total), "vram_used_mb": _mb(used)})
    return Gpus.model_validate({"gpus": gpus, "problems": [] if gpus else [NO_GPUS]})


def configuration_response(view: ServicesView) -> ConfigurationResponse:
    """Return the whole view; services without a saved assignment are unpinned."""
    saved = {} if view.saved is None else {each.service: each for each in view.saved.assignments}
    names = dict.fromkeys([*(service.name for service in view.services), *saved])
    return ConfigurationResponse.model_validate(
        {
            "strategy": view.strategy,
            "assignments": [saved.get(name, Assignment(name)) for name in names],
            "strategies": _STRATEGIES,
            "services": [{**asdict(each), "vram_mb": _mb(each.vram_bytes)} for each in view.services],
            "gpus": [
                {
                    **asdict(each),
                    "vram_total_mb": _mb(each.total_bytes),
                    "vram_occupied_mb": _mb(each.occupied_bytes),
                }
                for each in view.devices
            ],
            "saved": view.saved,
            "applied": view.applied,
            "changes": view.changes,
            **_warnings(view.warnings),
            "problems": _problems(view),
            "edited_files": [str(path) for path in view.edited],
        }
    )


def save_response(plan: AssignmentPlan) -> SaveResponse:
    """Return what was saved."""
    return SaveResponse.model_validate({"success": True, **_plan(plan)})


def preview_response(plan: AssignmentPlan, changes: Sequence[Change]) -> PreviewResponse:
    """Return what a strategy would do."""
    return PreviewResponse.model_validate({**_plan(plan), "diff": changes})


def apply_event(status: ApplyStatus) -> bytes:
    """Render a step of an apply as an event named `apply`."""
    return b"event: apply\ndata: %b\n\n" % ApplyResponse.model_validate(status).model_dump_json().encode()


def detect_response(seen: Iterable[SeenDevice], view: ServicesView) -> DetectResponse:
    """Return the GPUs that are present and those that were."""
    present = {device.id for device in view.devices}
    gpus = [
        {
            **asdict(each),
            "vram_total_mb": _mb(each.total_bytes),
            "vram_available_mb": _mb(each.available_bytes),
            "present": each.device_id in present,
        }
        for each in seen
    ]
    return DetectResponse.model_validate({"gpus": gpus, "problems": _problems(view)})


def _plan(plan: AssignmentPlan) -> dict[str, Any]:
    return {
        "strategy": plan.strategy,
        "assignments": plan.assignments,
        **_warnings(plan.warnings),
    }


def _warnings(warnings: Sequence[ServiceWarning]) -> dict[str, Any]:
    return {"warnings": [warning.text for warning in warnings], "warning_details": warnings}


def _problems(view: ServicesView) -> list[str]:
    without_gpu = not view.devices and not any(NO_GPUS in problem for problem in view.problems)
    return [*([NO_GPUS] if without_gpu else []), *view.problems]


def _mb(count_bytes: int | None) -> int | None:
    return None if count_bytes is None else round(count_bytes / MIB)
