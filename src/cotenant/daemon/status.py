"""The scheduler's state as operators see it."""

from __future__ import annotations

import math

from cotenant.domain.decisions import DeviceStatus, ModelStatus
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.state import ModelState, State
from cotenant.scheduling.upkeep import gone_at


def model_status(state: State, model: ModelState, now: float, reported_bytes: int | None) -> ModelStatus:
    """Describe one model."""
    residency = state.residency_of(model)
    idle_s = model.demand.idle_s(now)
    due = gone_at(state, residency) if residency else None
    return ModelStatus(
        name=model.spec.name,
        state=str(residency.state) if residency else "cold",
        pinned=model.pinned,
        in_flight=residency.in_flight if residency else 0,
        queued=len(model.queue),
        slots=model.spec.slots,
        idle_s=None if math.isinf(idle_s) else idle_s,
        keep_alive_left_s=None if due is None else max(0.0, due - now),
        requests_per_s=model.demand.rate(now),
        requests=model.demand.requests,
        loads=model.loads,
        load_s=model.load_s,
        devices=tuple(residency.bytes_by_device) if residency else (),
        predicted_bytes=residency.bytes if residency else None,
        reported_bytes=reported_bytes,
        measured_bytes=residency.measured_bytes if residency else None,
        last_failure=model.last_failure,
    )


def device_statuses(state: State) -> list[DeviceStatus]:
    """Describe every device, in planned order."""
    ledger = state.ledger
    return [
        DeviceStatus(
            uuid=device,
            index=reading.device.index,
            name=reading.device.name,
            total_bytes=reading.device.total_bytes,
            free_bytes=_free_bytes(state, reading),
            claimed_bytes=ledger.claimed_bytes(device),
            foreign_bytes=ledger.foreign_bytes(device),
            plannable_bytes=max(0, ledger.available_bytes(device)),
            overcommitted=device in state.overcommitted,
            residents=tuple(r.model for r in state.residencies.values() if device in r.bytes_by_device),
        )
        for device, reading in ledger.readings.items()
    ]


def _free_bytes(state: State, reading: DeviceReading) -> int | None:
    """Return what is free now: as measured, or less our claims where a Reading does not show them."""
    if reading.live or reading.free_bytes is None:
        return reading.free_bytes
    return max(0, reading.free_bytes - state.ledger.claimed_bytes(reading.device.id))
