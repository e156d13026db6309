"""Converts inventories into the Readings of the scheduler."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from cotenant.daemon.monitors.attribution import NO_USAGE, EngineUsage
from cotenant.domain.devices import Device, DeviceId, GpuProcess, Inventory, Reading
from cotenant.domain.residencies import ResidencyId
from cotenant.domain.units import format_bytes
from cotenant.domain.vendors import InventorySource
from cotenant.planning.budgets import BudgetRules, why_left_out
from cotenant.planning.compute_modes import ANY_NUMBER, Admission
from cotenant.planning.ledger import DeviceReading

_HOLDERS_NAMED = 3


def device_readings(
    inventory: Inventory,
    rules: BudgetRules,
    engines: Mapping[int, ResidencyId],
    at: float,
    admissions: Mapping[DeviceId, Admission] | None = None,
    usage: EngineUsage = NO_USAGE,
    asleep: Collection[int] = (),
) -> tuple[DeviceReading, ...]:
    """Return one DeviceReading per device, in planned order, host RAM last; `engines` are our processes.

    `admissions` are how many engines each takes, `usage` is what else our engines hold, and `asleep` are the
    processes of sleeping ones. Only a real card's
    Reading shows what our engines take. Host RAM's does not in any useful way: a mapped model is page cache,
    which counts as available.
    """
    admitted = admissions or {}
    gpus = tuple(
        replace(
            _reading(device, inventory.reading(device), inventory.source, rules, engines, at, usage, asleep),
            admission=admitted.get(device.id, ANY_NUMBER),
        )
        for device in inventory.ordered(rules.order)
    )
    if inventory.host is None:
        return gpus
    host = inventory.host
    return *gpus, *(
        _reading(device, host.reading(device), inventory.source, rules, engines, at, NO_USAGE, ())
        for device in host.devices
    )


def _reading(
    device: Device,
    reading: Reading,
    source: InventorySource,
    rules: BudgetRules,
    engines: Mapping[int, ResidencyId],
    at: float,
    usage: EngineUsage,
    asleep: Collection[int],
) -> DeviceReading:
    live = source.is_live
    free = reading.free_bytes
    capacity = device.total_bytes
    if not live or capacity is None:
        # What is free while none of our engines runs is all that can be shared.
        capacity = free or 0
    # Of host RAM, the driver lists what processes use as a GPU's only: what all use is not theirs alone.
    held = _held(reading.processes, engines) if live and not device.unified else None
    sleeping = sum(each.used_bytes or 0 for each in reading.processes or () if each.pid in asleep)
    ours = None if held is None else sum(held.values()) + sleeping
    if held is not None and ours is not None and free is not None:
        for residency, on in usage.ollama.items():
            if device.id in on:
                held[residency] = min(on[device.id], max(0, capacity - free - ours))
                ours += held[residency]
    foreign = None if ours is None or free is None else max(0, capacity - free - ours)
    others = tuple(
        each for each in reading.processes or () if each.pid not in engines and each.pid not in asleep
    )
    return DeviceReading(
        device,
        at,
        capacity_bytes=capacity,
        free_bytes=free,
        live=live,
        foreign_bytes=foreign if live else usage.ollama_foreign_bytes.get(device.id, 0),
        engine_bytes=held,
        holders=_named(others),
        left_out=why_left_out(device, reading, others, capacity - (foreign or 0), rules),
    )


def _held(
    processes: tuple[GpuProcess, ...] | None, engines: Mapping[int, ResidencyId]
) -> dict[ResidencyId, int] | None:
    """Return what each of our engines holds; None if the driver does not report it for each."""
    if processes is None:
        return None
    held: dict[ResidencyId, int] = {}
    for process in processes:
        if process.pid in engines:
            if process.used_bytes is None:
                return None
            residency = engines[process.pid]
            held[residency] = held.get(residency, 0) + process.used_bytes
    return held


def _named(others: tuple[GpuProcess, ...]) -> str:
    largest = sorted(others, key=lambda process: -(process.used_bytes or 0))[:_HOLDERS_NAMED]
    return ", ".join(
        f"{process.name or 'a process'} (pid {process.pid}, {format_bytes(process.used_bytes)})"
        for process in largest
    )
