"""Measures how much of the free memory the next model to load cannot use.

The measure is that of FGD (Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with
Fragmentation Gradient Descent", USENIX ATC 2023, section 3), with bytes in place of shares of a GPU. A node's
fragmentation is what a task drawn from the workload expects to find free and cannot use there:
F = Σ_m p_m · Σ_d free(d) · [m cannot use d]. Here m are the served models that are not loaded, p_m is m's
share of the requests, at least 1/M for M models, and all p_m sum to 1. F is divided by Σ_d free(d).

A model can use the devices on which it fits alone; if there is none, those that it is split over. Models that
take no memory of devices, or would not fit even if no other were loaded, do not count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cotenant.domain.devices import DeviceId
from cotenant.domain.fragmentation import DeviceFragmentation, Fragmentation, SizedModel
from cotenant.domain.placements import Budget, Placement
from cotenant.planning.device_needs import Fit
from cotenant.planning.host_memory import on_host
from cotenant.planning.needs import Need, Needs


@dataclass(frozen=True, slots=True)
class LoadableModel:
    """A served model that is not loaded; `together` as in `choose_devices`, `demand` in requests per second.

    Demand always changes a little, and does not count when what was measured is compared.
    """

    name: str
    fit: Fit
    together: bool = False
    demand: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """A device: its Budget now, and bytes that may be planned there.

    `free_bytes` also counts where no further engine is admitted, `whole_bytes` is without our models.
    """

    budget: Budget
    free_bytes: int
    whole_bytes: int


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """What is free on all devices, in planned order, and of host RAM besides, and the models for it."""

    models: tuple[LoadableModel, ...]
    rooms: tuple[DeviceRoom, ...]
    host: Budget | None = None


def measure(memory: FreeMemory, needs: Needs) -> Fragmentation:
    """Measure how fragmented free memory is for the models that are not loaded."""
    rooms, host = memory.rooms, memory.host
    free = {room.budget.device.id: room.free_bytes for room in rooms}
    pieces = _one_piece(rooms)
    usable: list[tuple[LoadableModel, frozenset[DeviceId]]] = []
    largest: SizedModel | None = None
    largest_in_one_piece: SizedModel | None = None
    for model in memory.models:
        alone = {room.budget.device.id: needs.of(model.name, model.fit, room.budget) for room in rooms}
        now = _usable(model, [room.budget for room in rooms], alone, host)
        if now is None:
            continue
        devices, taken = now
        size = taken or min((need.bytes for need in alone.values() if need), default=0)
        fits_in_one = any(
            need is not None and need.bytes <= pieces[device] and _host_has(need, host)
            for device, need in alone.items()
        )
        if not devices and not fits_in_one and not _fits_emptied(model, rooms, alone, host):
            continue
        usable.append((model, devices))
        sized = SizedModel(model.name, size)
        if devices:
            largest = _larger(largest, sized)
        if devices or fits_in_one:
            largest_in_one_piece = _larger(largest_in_one_piece, sized)
    shares = _shares([model for model, _ in usable])
    by_device = {
        str(device): DeviceFragmentation(
            sum(share for share, (_, devices) in zip(shares, usable, strict=True) if device not in devices),
            count if usable and not any(device in devices for _, devices in usable) else 0,
        )
        for device, count in free.items()
    }
    total = sum(free.values())
    unusable = sum(count * by_device[device].ratio for device, count in free.items())
    return Fragmentation(
        unusable / total if total else 0.0,
        total,
        sum(found.stranded_bytes for found in by_device.values()),
        largest,
        largest_in_one_piece,
        by_device,
    )


def _usable(
    model: LoadableModel,
    budgets: Sequence[Budget],
    alone: Mapping[DeviceId, Need | None],
    host: Budget | None,
) -> tuple[frozenset[DeviceId], int] | None:
    """Return the devices that a model can use, and the bytes that it takes where it is split, else 0.

    None means that it takes no memory of devices.
    """
    if not model.together:
        fits = frozenset(
            budget.device.id
            for budget in budgets
            if budget.left_out is None
            and (need := alone[budget.device.id]) is not None
            and need.bytes <= budget.budget_bytes
            and _host_has(need, host)
        )
        least = min((need.bytes for need in alone.values() if need), default=0)
        # Over several devices it takes at least what it takes on one: no plan is needed to see that.
        if fits or sum(budget.budget_bytes for budget in budgets) < least:
            return fits, 0
    placed = on_host(model.fit(budgets), host)
    if not isinstance(placed, Placement):
        return frozenset(), 0
    shares = placed.used_shares
    if not shares:
        return None
    return frozenset(share.device.id for share in shares), sum(share.parts.total for share in shares)


def _fits_emptied(
    model: LoadableModel,
    rooms: Sequence[DeviceRoom],
    alone: Mapping[DeviceId, Need | None],
    host: Budget | None,
) -> bool:
    """Whether a model would fit if no other were loaded."""
    emptied = [
        replace(room.budget, budget_bytes=room.whole_bytes, left_out=None)
        for room in rooms
        if room.whole_bytes > 0
    ]
    found = _usable(model, emptied, alone, host)
    return found is not None and bool(found[0])


def _one_piece(rooms: Sequence[DeviceRoom]) -> dict[DeviceId, int]:
    """Return what each device would have free if all free memory of its machine were there, if it can be."""
    by_node: dict[str | None, int] = {}
    for room in rooms:
        node = room.budget.device.node
        by_node[node] = by_node.get(node, 0) + room.free_bytes
    return {room.budget.device.id: min(by_node[room.budget.device.node], room.whole_bytes) for room in rooms}


def _host_has(need: Need, host: Budget | None) -> bool:
    return host is None or need.host_bytes <= host.budget_bytes


def _larger(found: SizedModel | None, other: SizedModel) -> SizedModel:
    return other if found is None or other.bytes > found.bytes else found


def _shares(models: Iterable[LoadableModel]) -> list[float]:
    """Return the weight of each model: its share of the requests, at least 1/M, of a sum of 1."""
    demands = [model.demand for model in models]
    total, floor = sum(demands), 1 / max(1, len(demands))
    weights = [max(demand / total if total else 0.0, floor) for demand in demands]
    return [weight / sum(weights) for weight in weights]
