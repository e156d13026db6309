"""Which GPU each service is pinned to: the strategies, and what each of them guarantees.

With every strategy, manual assignments stay and are counted first, unhealthy GPUs are not chosen, and no
service is refused: one that does not fit is placed anyway, with a warning. Services are placed in a fixed
order, largest first and then as given, and equal GPUs by index: the result is deterministic.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cotenant.services.assign.balance import balanced
from cotenant.services.assign.balance_exact import overflow, spread
from cotenant.services.assign.fit import Layout, fitting
from cotenant.services.assign.memory import (
    Chosen,
    FreeMemory,
    assigned_device,
    assigned_devices,
    divided,
    least_budgets,
    needed_bytes,
    placed_by_device,
    relative_speeds,
)
from cotenant.services.assign.warnings import no_healthy_gpu, warnings_of
from cotenant.services.model import (
    Assignment,
    AssignmentPlan,
    GpuRef,
    Service,
    ServiceDevice,
    ServiceRole,
    Strategy,
)


def assign(
    strategy: Strategy,
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    manual: Sequence[Assignment] = (),
    *,
    known_services: Collection[str] | None = None,
) -> AssignmentPlan:
    """Assign every enabled service to a GPU, with a VRAM budget where it needs one.

    `manual` assignments keep their GPUs and their budget under every strategy; an automatic budget is
    computed anew, unless a GPU is missing. One without a GPU leaves the choice to the strategy; one whose GPU
    is missing leaves the service unpinned, and keeps the GPU's id. One that asks for a number of GPUs gets,
    under every strategy, those with the most free memory: after those set on named GPUs, before all others.
    So does, but not under `manual`, a service that is configured for several (`gpu_count`).
    The last of several for one service counts. Under `manual`, and where there is no healthy GPU, the others
    stay unpinned. `known_services` are those in the compose files, None if they were not read.
    """
    devices = sorted(devices, key=lambda device: (device.index, device.id))
    healthy = [device for device in devices if device.healthy]
    given = {each.service: _without_automatic(each, devices) for each in manual}
    enabled = [service for service in services if service.enabled]
    wanted = {service.name: given.get(service.name, Assignment(service.name)) for service in enabled}
    if strategy is not Strategy.MANUAL and healthy:
        wanted = {one.name: _counted(one, wanted[one.name], devices) for one in enabled}
    needs = {service.name: needed_bytes(service, wanted[service.name].vram_budget_gb) for service in enabled}
    to_place = [one for one in enabled if not (wanted[one.name].gpus or wanted[one.name].count)]
    memory = FreeMemory(healthy)
    fixed = [service for service in enabled if service not in to_place]
    for service in sorted(fixed, key=lambda one: (not wanted[one.name].gpus, -needs[one.name])):
        each = wanted[service.name]
        if not each.gpus and isinstance(each.count, int):
            freest = sorted(healthy, key=lambda device: -memory.free(device))[: each.count]
            each = wanted[service.name] = each.on(device.ref for device in freest)
        needs[service.name] = needed_bytes(divided(service, each), each.vram_budget_gb)
        for device in assigned_devices(each, healthy):
            memory.place(service, needs[service.name], device)
    if strategy is not Strategy.MANUAL and healthy:
        chosen = RULES[strategy](to_place, needs, memory)
        for name, device in _fitted(strategy, chosen, enabled, wanted, needs, healthy).items():
            wanted[name] = replace(wanted[name], gpu_index=device.index, device_id=device.id)
    for name, gb in least_budgets(enabled, devices, wanted.values()).items():
        wanted[name] = replace(wanted[name], vram_budget_gb=gb, budget_auto=True)
    others = [one for name, one in given.items() if name not in wanted]
    warnings = warnings_of(services, devices, [*others, *wanted.values()], known_services=known_services)
    if strategy is not Strategy.MANUAL and to_place and devices and not healthy:
        warnings = (no_healthy_gpu(devices), *warnings)
    return AssignmentPlan(strategy, tuple(_resolved(one, devices) for one in wanted.values()), warnings)


def latency_optimized(services: Sequence[Service], needs: Mapping[str, int], memory: FreeMemory) -> Chosen:
    """Place latency-critical services, largest first, on the fastest GPU that holds them at their turn.

    If none holds it, it goes to the GPU with the most free memory. Then the rest is placed as by
    `vram_based`. Unless the speed of every GPU is known, their totals are used instead.
    """
    speeds = relative_speeds(memory.devices)
    fastest = sorted(memory.devices, key=lambda device: -speeds[device.id])

    def first_that_holds(need: int) -> ServiceDevice:
        return next((device for device in fastest if memory.free(device) >= need), memory.most_free())

    critical = [service for service in services if service.latency_critical]
    chosen = memory.place_each(critical, needs, first_that_holds)
    return chosen | memory.spread([service for service in services if not service.latency_critical], needs)


def isolation_first(services: Sequence[Service], needs: Mapping[str, int], memory: FreeMemory) -> Chosen:
    """Place LLMs on GPUs of their own, the largest that hold them, and everything else on the others.

    Of several LLMs, the largest first, each gets a GPU of its own, but the last GPU is kept for the other
    services as long as the LLM fits on a GPU with other LLMs. An LLM that no empty GPU holds shares one where
    it fits, with LLMs rather than other services; if it fits nowhere, it goes to the GPU with the most free
    memory. Everything else is spread over the GPUs without an LLM, even if it overfills them; if there is
    none, over the GPUs of the LLMs.
    """
    llms = [service for service in services if service.role is ServiceRole.LLM]
    rest = [service for service in services if service.role is not ServiceRole.LLM]

    def own_gpu(need: int) -> ServiceDevice:
        holding = [device for device in memory.devices if memory.free(device) >= need]
        empty = [device for device in holding if memory.empty(device)]
        with_llm = [device for device in holding if memory.has_llm(device)]
        others = [device for device in memory.devices if not memory.has_llm(device)]
        if empty and not (rest and with_llm and len(others) == 1):
            return max(empty, key=lambda device: device.total_bytes)
        return memory.most_free(with_llm or empty or holding)

    def without_llm(need: int) -> ServiceDevice:
        return memory.most_free([device for device in memory.devices if not memory.has_llm(device)])

    chosen = memory.place_each(llms, needs, own_gpu)
    return chosen | memory.place_each(rest, needs, without_llm)


def _fitted(
    strategy: Strategy,
    chosen: Chosen,
    services: Sequence[Service],
    wanted: Mapping[str, Assignment],
    needs: Mapping[str, int],
    devices: Sequence[ServiceDevice],
) -> Chosen:
    """Return where a strategy puts services, or a layout near that if that overfills a GPU and need not."""
    sized = [service for service in services if service.name in chosen and needs[service.name]]
    positions = {device.id: position for position, device in enumerate(devices)}
    placed = placed_by_device(services, devices, wanted.values())
    layout = Layout(
        devices,
        [placed[device.id] for device in devices],
        [(service, wanted[service.name].vram_budget_gb) for service in sized],
        tuple(positions[chosen[service.name].id] for service in sized),
    )

    def preference(gpus: Sequence[Sequence[Service]], moved: Sequence[Service]) -> tuple[float, ...]:
        if strategy is Strategy.LATENCY_OPTIMIZED:
            return (sum(service.latency_critical for service in moved),)
        if strategy is Strategy.ISOLATION_FIRST:
            with_llm = [here for here in gpus if any(each.role is ServiceRole.LLM for each in here)]
            return (sum(each.role is not ServiceRole.LLM for here in with_llm for each in here),)
        if strategy is Strategy.BALANCED:
            loads = [
                device.occupied_bytes + sum(needs[each.name] for each in here)
                for device, here in zip(devices, gpus, strict=True)
            ]
            totals = [max(1, device.total_bytes) for device in devices]
            return (
                overflow(loads, totals),
                spread([load / total for load, total in zip(loads, totals, strict=True)]),
            )
        return ()

    where = fitting(layout, preference)
    return chosen | {one.name: devices[gpu] for one, gpu in zip(sized, where, strict=True)}


RULES: Final[dict[Strategy, Callable[[Sequence[Service], Mapping[str, int], FreeMemory], Chosen]]] = {
    Strategy.VRAM_BASED: lambda services, needs, memory: memory.spread(services, needs),
    Strategy.LATENCY_OPTIMIZED: latency_optimized,
    Strategy.ISOLATION_FIRST: isolation_first,
    Strategy.BALANCED: balanced,
}


def _counted(service: Service, assignment: Assignment, devices: Sequence[ServiceDevice]) -> Assignment:
    """Return an assignment, with the number of GPUs that its service is configured for if it has none."""
    if assignment.gpus or assignment.count or service.gpu_count in (None, 1):
        return assignment
    assignment = replace(assignment, count=service.gpu_count)
    return assignment.on(device.ref for device in devices) if service.gpu_count == "all" else assignment


def _without_automatic(assignment: Assignment, devices: Sequence[ServiceDevice]) -> Assignment:
    """Return an operator's assignment, without an automatic budget that is to be computed anew.

    `all` GPUs are those of now; a number of GPUs other than it asks for is chosen anew.
    """
    if assignment.count == "all":
        assignment = assignment.on(device.ref for device in devices)
    elif assignment.count is not None and assignment.count != len(assignment.gpus):
        assignment = assignment.on(())
    chosen = replace(assignment, by_hand=bool(assignment.gpus or assignment.count))
    missing = len(assigned_devices(assignment, devices)) < len(assignment.gpus)
    if missing or not assignment.budget_auto:
        return chosen
    return replace(chosen, vram_budget_gb=None, budget_auto=False)


def _resolved(assignment: Assignment, devices: Sequence[ServiceDevice]) -> Assignment:
    """Name the GPUs by index and id as they are now, in index order; without an index those missing."""
    here = sorted(assigned_devices(assignment, devices), key=lambda device: device.index)
    gone = [GpuRef(None, each.device_id) for each in assignment.gpus if not assigned_device(each, devices)]
    return assignment.on([*(device.ref for device in here), *gone])
