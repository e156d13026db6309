"""The scheduler's free memory as its fragmentation is measured, and as moves of models would change it."""

import math
from collections import Counter
from collections.abc import Collection, Mapping

from cotenant.domain.devices import DeviceId
from cotenant.planning.defragment import PackingProblem, Resident
from cotenant.planning.fragmentation import DeviceRoom, FreeMemory, LoadableModel
from cotenant.scheduling.model_state import ModelState, longest_wait_s
from cotenant.scheduling.moves import obstacle
from cotenant.scheduling.room import reserved
from cotenant.scheduling.state import State


def free_memory(state: State, now: float) -> FreeMemory:
    """Return the free memory of all devices, and the models that are served and not loaded."""
    models = (
        _loadable(model, now)
        for model in state.models.values()
        if model.residency is None and not model.removed and model.copy_of is None
    )
    hosts = (state.ledger.host_budget({}, reading.device.node) for reading in state.ledger.hosts.values())
    most = max(filter(None, hosts), key=lambda budget: budget.budget_bytes, default=None)
    return FreeMemory(tuple(models), _rooms(state), most)


def packing_problem(state: State, model: ModelState) -> PackingProblem:
    """Return a model that is to fit among those that are loaded, and which of these may be moved.

    Pinned models and those that are loading, moving or about to be evicted stay, as do those that are spread
    over devices on purpose, or whose engines others run. Of several machines it is about the one
    with the most free memory for the model.
    """
    ledger = state.ledger
    freed, leaving = reserved(state)
    slots = {
        device: reading.admission.max_engines - ledger.engines(device) + leaving[device]
        for device, reading in ledger.readings.items()
        if reading.admission.max_engines is not None
    }
    rooms, free = _rooms(state, freed, state.loading_devices()), Counter[str | None]()
    for room in rooms:
        device = room.budget.device
        allowed = model.allowed is None or device.id in model.allowed
        if room.budget.left_out is None and allowed and model.load_cost_s(device.node) != math.inf:
            free[device.node] += room.free_bytes
    node = max(free, key=lambda name: free[name], default=None)
    rooms = tuple(room for room in rooms if room.budget.device.node == node)
    here = {room.budget.device.id for room in rooms}
    evicted = {victim for reservation in state.reservations.values() for victim in reservation.victims}
    residents = []
    for other in state.models.values():
        residency = state.residency_of(other)
        stays = other.pinned or other.removed or other.spec.together or obstacle(state, other)
        if residency is None or residency.id in evicted or stays:
            continue
        if here.issuperset(residency.devices):
            idle = residency.idle and not other.queue
            held = {**residency.bytes_by_device}
            residents.append(Resident(other.spec.name, other.fit, held, idle, other.allowed))
    memory = FreeMemory((), rooms, ledger.host_budget(freed, node))
    return PackingProblem(_loadable(model, 0.0), memory, tuple(residents), slots)


def waiting_longest(state: State, now: float) -> ModelState | None:
    """Return the model that waits longest for room that is not being made for it; None if none waits."""
    waiting = [each for each in state.cold_and_wanted() if each.spec.name not in state.reservations]
    return max(waiting, key=lambda each: longest_wait_s(each, now), default=None)


def _loadable(model: ModelState, now: float) -> LoadableModel:
    name, fit, together = model.spec.name, model.fit, model.spec.together
    return LoadableModel(name, fit, together, model.demand.rate(now), model.allowed)


def _rooms(
    state: State, freed: Mapping[DeviceId, int] | None = None, busy: Collection[DeviceId] = ()
) -> tuple[DeviceRoom, ...]:
    """Return the room of all devices, in planned order; with `freed`, also where no engine is admitted."""
    ledger, rooms = state.ledger, []
    for device in ledger.readings:
        given, any_number = (freed or {}).get(device, 0), freed is not None
        budget = ledger.budget(device, given, busy=device in busy, any_number=any_number)
        reading = ledger.readings[device]
        free = whole = 0
        if reading.left_out is None and reading.free_bytes is not None and device not in ledger.drained:
            free = ledger.available_bytes(device) + (freed or {}).get(device, 0)
            reserve = reading.device.reserve(ledger.reserve_bytes)
            whole = reading.capacity_bytes - ledger.foreign_bytes(device) - reserve
        free = free if any_number else max(0, free)
        rooms.append(DeviceRoom(budget, free, max(free, whole), ledger.devices.kind(device)))
    return tuple(rooms)
