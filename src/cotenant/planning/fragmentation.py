"""Measures how much of the free memory the next model to load cannot use.

The measure is that of FGD (Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with
Fragmentation Gradient Descent", USENIX ATC 2023, section 3), with bytes in place of shares of a GPU. A node's
fragmentation is what a task drawn from the workload expects to find free and cannot use there:
F = Σ_m p_m · Σ_d free(d) · [m cannot use d]. Here m are the served models that are not loaded, p_m is m's
share of the requests, at least 1/M for M models, and all p_m sum to 1. F is divided by Σ_d free(d).

A model can use the devices on which it fits alone; if there is none, those that it is split over. Models that
take no memory of devices, or would not fit even if no other were loaded, do not count.
"""

from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from cotenant.domain.devices import DeviceId
from cotenant.domain.fragmentation import DeviceFragmentation, Fragmentation, SizedModel
from cotenant.domain.placements import Budget, Placement
from cotenant.planning.device_needs import Fit, Kind
from cotenant.planning.host_memory import on_host
from cotenant.planning.needs import Need, Needs


@dataclass(frozen=True, slots=True)
class LoadableModel:
    """A served model that is not loaded; it may be on devices that are `allowed`, None for any.

    `together` is as in `choose_devices`. `demand` is in requests per second; it always changes a little, and
    does not count when what was measured is compared.
    """

    name: str
    fit: Fit
    together: bool = False
    demand: float = field(default=0.0, compare=False)
    allowed: tuple[DeviceId, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """A device: its Budget now, and bytes that may be planned there.

    `free_bytes` also counts where no further engine is admitted, `whole_bytes` is without our models. A model
    that may be on any device is planned once for all of a `kind`; None is a kind of its own.
    """

    budget: Budget
    free_bytes: int
    whole_bytes: int
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """What is free on all devices, in planned order, and of host RAM besides, and the models for it.

    Of several machines, `host` is the RAM with the most room.
    """

    models: tuple[LoadableModel, ...]
    rooms: tuple[DeviceRoom, ...]
    host: Budget | None = None


@dataclass(frozen=True, slots=True)
class _Alike:
    """Devices for which a model is planned once, and the most bytes on one: now, in one piece, emptied."""

    rooms: Sequence[DeviceRoom]
    now: int
    one_piece: int
    whole: int

    @classmethod
    def of(cls, rooms: Sequence[DeviceRoom], free_by_node: Mapping[str | None, int]) -> "_Alike":
        now = max((r.budget.budget_bytes for r in rooms if r.budget.left_out is None), default=-1)
        pieces = (min(free_by_node[r.budget.device.node], r.whole_bytes) for r in rooms)
        return cls(rooms, now, max(pieces), max(r.whole_bytes for r in rooms))


@dataclass(frozen=True, slots=True)
class _Usable:
    """Where a model can be: on each device of these kinds with the bytes that it needs, or on `devices`."""

    model: LoadableModel
    needs: Mapping[Hashable, Need]
    devices: Collection[DeviceId]


def measure(memory: FreeMemory, needs: Needs) -> Fragmentation:
    """Measure how fragmented free memory is for the models that are not loaded."""
    free_by_node: dict[str | None, int] = {}
    kinds: dict[Hashable, list[DeviceRoom]] = {}
    for room in memory.rooms:
        device = room.budget.device
        free_by_node[device.node] = free_by_node.get(device.node, 0) + room.free_bytes
        kinds.setdefault(room.kind or device.id, []).append(room)
    alike = {key: _Alike.of(rooms, free_by_node) for key, rooms in kinds.items()}
    found: list[_Usable] = []
    largest = in_one_piece = None
    for model in memory.models:
        own = alike
        if model.allowed is not None:
            named = (room for room in memory.rooms if room.budget.device.id in model.allowed)
            own = {room.budget.device.id: _Alike.of([room], free_by_node) for room in named}
        alone = {
            key: need
            for key, each in own.items()
            if (need := needs.of(model.name, model.fit, each.rooms[0].budget, key)) is not None
            and (memory.host is None or need.host_bytes <= memory.host.budget_bytes)
        }
        least = min((need.bytes for need in alone.values()), default=0)
        fits = {} if model.together else {k: n for k, n in alone.items() if n.bytes <= own[k].now}
        split = None
        if not fits:
            budgets = [room.budget for room in memory.rooms]
            split = _split(model, budgets, 0 if model.together else least, memory.host)
        devices = [share.device.id for share in split.used_shares] if split is not None else []
        if split is not None and not devices:
            continue  # It takes no memory of devices.
        would = any(need.bytes <= own[key].one_piece for key, need in alone.items())
        if not (fits or devices or would or _fits_emptied(model, memory, own, alone)):
            continue
        size = sum(share.parts.total for share in split.used_shares) if split is not None else least
        found.append(_Usable(model, fits, devices))
        if fits or devices:
            largest = _larger(largest, SizedModel(model.name, size))
        if fits or devices or would:
            in_one_piece = _larger(in_one_piece, SizedModel(model.name, size))
    by_device = _by_device(kinds, found)
    total = sum(room.free_bytes for room in memory.rooms)
    unusable = sum(room.free_bytes * by_device[room.budget.device.id].ratio for room in memory.rooms)
    return Fragmentation(
        unusable / total if total else 0.0,
        total,
        sum(each.stranded_bytes for each in by_device.values()),
        largest,
        in_one_piece,
        {str(device): each for device, each in by_device.items()},
    )


def _split(
    model: LoadableModel, budgets: Iterable[Budget], least: int, host: Budget | None
) -> Placement | None:
    """Place a model on several devices of one machine, where it takes at least as much as on one."""
    nodes: dict[str | None, list[Budget]] = {}
    for budget in budgets:
        nodes.setdefault(budget.device.node, []).append(budget)
    for members in nodes.values():
        if sum(budget.budget_bytes for budget in members) >= least:
            placed = on_host(model.fit(members), host)
            if isinstance(placed, Placement):
                return placed
    return None


def _fits_emptied(
    model: LoadableModel,
    memory: FreeMemory,
    own: Mapping[Hashable, _Alike],
    alone: Mapping[Hashable, Need],
) -> bool:
    """Whether a model would fit if no other were loaded."""
    if any(need.bytes <= own[key].whole for key, need in alone.items()):
        return True
    emptied = (
        replace(room.budget, budget_bytes=room.whole_bytes, left_out=None)
        for room in memory.rooms
        if room.whole_bytes > 0
    )
    return _split(model, emptied, 0, memory.host) is not None


def _by_device(
    kinds: Mapping[Hashable, Sequence[DeviceRoom]], found: Sequence[_Usable]
) -> dict[DeviceId, DeviceFragmentation]:
    """Return the part of each device: models that fit there by what they need, others by where they are."""
    shares = _shares([each.model for each in found])
    named: dict[Hashable, float] = {}
    by_kind: dict[Hashable, list[tuple[int, float]]] = {}
    for share, usable in zip(shares, found, strict=True):
        for device in usable.devices:
            named[device] = named.get(device, 0.0) + share
        for key, need in usable.needs.items():
            by_kind.setdefault(key, []).append((need.bytes, share))
    sums = {key: _sums(pairs) for key, pairs in by_kind.items()}
    parts = {}
    for key, rooms in kinds.items():
        for room in rooms:
            device, can = room.budget.device.id, named.get(room.budget.device.id, 0.0)
            for each in {key, device} if room.budget.left_out is None else ():
                needed, share_of = sums.get(each, ([], [0.0]))
                can += share_of[bisect_right(needed, room.budget.budget_bytes)]
            ratio = max(0.0, round(1 - can, 9)) if found else 0.0
            parts[device] = DeviceFragmentation(ratio, room.free_bytes if found and can == 0 else 0)
    return parts


def _sums(pairs: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return the bytes that models need, in order, and the share of the first n of them for each n."""
    ordered = sorted(pairs)
    return [need for need, _ in ordered], [*accumulate((share for _, share in ordered), initial=0.0)]


def _larger(found: SizedModel | None, other: SizedModel) -> SizedModel:
    return other if found is None or other.bytes > found.bytes else found


def _shares(models: Iterable[LoadableModel]) -> list[float]:
    """Return the weight of each model: its share of the requests, at least 1/M, of a sum of 1."""
    demands = [model.demand for model in models]
    total, floor = sum(demands), 1 / max(1, len(demands))
    weights = [max(demand / total if total else 0.0, floor) for demand in demands]
    whole = sum(weights)
    return [weight / whole for weight in weights]
