"""The memory that services need, the budgets that limit it, and what others occupy on GPUs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.units import GIB, MIB
from cotenant.services.model import Assignment, Service, ServiceDevice

HEADROOM_BYTES: Final = 128 * MIB


def needed_bytes(service: Service, budget_gb: float | None = None) -> int:
    """Return the bytes that a service is assumed to need: its budget if it takes one, else its stated need.

    A service without a stated need counts as 0: it is placed, but no memory is reserved for it.
    """
    if budget_gb is not None and service.budget_env is not None:
        return round(budget_gb * GIB)
    return service.vram_bytes or 0


def assigned_device(assignment: Assignment, devices: Iterable[ServiceDevice]) -> ServiceDevice | None:
    """Return the GPU that an assignment names; None if it is missing or the assignment names none.

    The id counts if there is one: after a renumbering the index may name another GPU.
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

    A service that runs on a GPU must not displace itself. Drivers do not always report the owner of memory,
    so what is in use beyond the scheduler's claims is attributed to the running services up to the sum of
    their needs; the rest is foreign. Occupied is foreign plus claimed. A service that is not pinned is
    assumed to be on the GPU of lowest index, where CUDA puts it. If the use is unknown, only claims count.
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


Placed = Sequence[tuple[Service, float | None]]
"""Services on one GPU, each with its manual budget."""


def adjusted_budgets(device: ServiceDevice, placed: Placed) -> dict[str, float]:
    """Return budgets in GB (2^30 bytes) for services on one GPU that cannot hold all; none if all fit.

    Only services with a budget variable get one, and a manual budget stays. The rule: the GPU's total,
    less what others occupy, less the other services there, less a headroom of 128 MiB, rounded down to 0.1
    GB. Several such services are reduced in proportion to their needs. On the reference GPU, 4,094 MiB with
    329 in use, that is 3.5 GB for one that needs 6.8. A service that would get less than 0.1 GB gets no
    budget, since none would help.
    """
    cut = [service for service, given in placed if adjustable(service, given)]
    others = sum(needed_bytes(service, given) for service, given in placed if not adjustable(service, given))
    left = device.total_bytes - device.occupied_bytes - others
    needed = sum(needed_bytes(service) for service in cut)
    if needed <= left:
        return {}
    usable = left - HEADROOM_BYTES
    tenths = {service.name: usable * 10 * needed_bytes(service) // (needed * GIB) for service in cut}
    return {name: count / 10 for name, count in tenths.items() if count >= 1}


def adjustable(service: Service, given_gb: float | None) -> bool:
    """Whether Cotenant sets the service's budget."""
    return service.budget_env is not None and given_gb is None and bool(service.vram_bytes)
