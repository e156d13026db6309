"""The scheduler's free memory, as its fragmentation is measured."""

from cotenant.planning.fragmentation import DeviceRoom, FreeMemory, LoadableModel
from cotenant.scheduling.state import State


def free_memory(state: State, now: float) -> FreeMemory:
    """Return the free memory of all devices, and the models that are served and not loaded."""
    ledger, rooms = state.ledger, []
    for budget in ledger.budgets():
        device = budget.device.id
        reading = ledger.readings[device]
        free = whole = 0
        if reading.left_out is None and reading.free_bytes is not None:
            free = max(0, ledger.available_bytes(device))
            whole = reading.capacity_bytes - ledger.foreign_bytes(device) - ledger.reserve_bytes
        rooms.append(DeviceRoom(budget, free, max(free, whole)))
    models = (
        LoadableModel(name, model.fit, model.spec.together, model.demand.rate(now))
        for name, model in state.models.items()
        if model.residency is None and not model.removed
    )
    return FreeMemory(tuple(models), tuple(rooms), ledger.host_budget({}))
