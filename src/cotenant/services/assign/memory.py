"""What services take of GPUs, and what others occupy there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cotenant.domain.units import GIB
from cotenant.services.model import Assignment, Service, ServiceDevice


def needed_bytes(service: Service, budget_gb: float | None = None) -> int:
    """Return what a service is taken to need: its budget, if it can be told one and is; else what was said.

    A service of which nobody said what it needs counts as 0: it is placed, but no room is kept for it.
    """
    if budget_gb is not None and service.budget_env is not None:
        return round(budget_gb * GIB)
    return service.vram_bytes or 0


def assigned_device(assignment: Assignment, devices: Iterable[ServiceDevice]) -> ServiceDevice | None:
    """Return the GPU that an assignment names, None if it is not there or the assignment names none.

    The id counts where there is one: an index may be another card's after a renumbering.
    """
    for device in devices:
        if assignment.device_id is not None:
            if device.id == assignment.device_id:
                return device
        elif device.index == assignment.gpu_index:
            return device
    return None


@dataclass(frozen=True, slots=True)
class GpuUse:
    """A GPU's memory as measured, None if unknown, and what the scheduler's own models hold of it."""

    index: int
    used_bytes: int | None
    claimed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service whose container runs, with the GPU and the budget that it was created with.

    `gpu_index` is None if it was not pinned.
    """

    service: Service
    gpu_index: int | None = None
    budget_gb: float | None = None


def occupied(gpus: Sequence[GpuUse], running: Iterable[RunningService]) -> dict[int, int]:
    """Return the bytes on each GPU, by index, that are neither free nor the services' own.

    A service that runs on a GPU must not push itself off. Drivers do not always tell whose memory is whose,
    so what is in use beyond the scheduler's claims is taken to be the running services' up to the sum of
    their needs; the rest is foreign. Occupied is foreign and claimed together. A service that is not pinned
    is taken to be on the GPU of lowest index, where CUDA puts it. Where the use is unknown only claims count.
    """
    lowest = min((gpu.index for gpu in gpus), default=None)
    own: dict[int | None, int] = {}
    for one in running:
        index = lowest if one.gpu_index is None else one.gpu_index
        own[index] = own.get(index, 0) + needed_bytes(one.service, one.budget_gb)
    found = {}
    for gpu in gpus:
        beyond = 0 if gpu.used_bytes is None else gpu.used_bytes - gpu.claimed_bytes
        found[gpu.index] = gpu.claimed_bytes + max(0, beyond - own.get(gpu.index, 0))
    return found
