"""The bytes that may be planned on each device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cotenant.domain.devices import Device, DeviceKind, DeviceOrder, GpuProcess, Inventory, Reading
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.placements import Budget
from cotenant.domain.settings import setting
from cotenant.domain.units import MIB, format_bytes
from cotenant.planning.compute_modes import left_out_by_mode

FREE_UNKNOWN: Final = "its free memory is unknown"


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """How budgets are computed from free memory.

    `reserve_bytes` stays free on every device. A GPU whose budget is below `min_budget_bytes` is not used.
    `overhead_bytes` is what a process takes on a GPU besides weights, KV and compute: the CUDA context and
    its pools, reported as 107 to 555 MiB. `overheads` has measured values by kind of engine and device name,
    which replace it (`calibration.learned_overheads`).
    """

    order: DeviceOrder = setting(DeviceOrder.FREE_DESC, "which GPU comes first", flag="device_order")
    reserve_bytes: int = setting(
        1024 * MIB,
        "MiB kept free on every device",
        key="reserve_mib",
        reads="mib",
        group="budget",
        metavar="MIB",
    )
    min_budget_bytes: int = setting(
        1024 * MIB,
        "a GPU with less than this left is not used",
        key="min_budget_mib",
        reads="mib",
        group="budget",
        metavar="MIB",
    )
    overhead_bytes: int = setting(
        512 * MIB,
        "MiB per GPU for the CUDA context and its pools",
        key="overhead_mib",
        reads="mib",
        group="budget",
        metavar="MIB",
    )
    overheads: Mapping[tuple[EngineKind, str], int] = field(default_factory=dict, hash=False)


def budgets(inventory: Inventory, rules: BudgetRules) -> tuple[Budget, ...]:
    """Return one Budget per device, in planned order."""
    found = []
    for device in inventory.ordered(rules.order):
        reading = inventory.reading(device)
        free = reading.free_bytes or 0
        left_out = why_left_out(device, reading, reading.processes or (), free, rules)
        room = 0 if left_out else max(0, free - device.reserve(rules.reserve_bytes))
        found.append(Budget(device, reading.free_bytes, room, left_out))
    return tuple(found)


def host_budget(inventory: Inventory, rules: BudgetRules) -> Budget | None:
    """Return the Budget of host RAM on a machine with GPUs; None without GPUs, or if it is unknown.

    Where a GPU shares it, it is the GPU's.
    """
    found = budgets(inventory.host, rules) if inventory.host is not None and inventory.has_gpus else ()
    if not found:
        found = tuple(budget for budget in budgets(inventory, rules) if budget.device.unified)
    return next((budget for budget in found if budget.free_bytes is not None), None)


def overhead_bytes(device: Device, rules: BudgetRules, engine: EngineKind) -> int:
    """Return what an engine's process takes on this device beyond what it reports; 0 in host RAM."""
    if device.kind is DeviceKind.HOST:
        return 0
    return rules.overheads.get((engine, device.name), rules.overhead_bytes)


def why_left_out(
    device: Device, reading: Reading, others: Sequence[GpuProcess], most_bytes: int, rules: BudgetRules
) -> str | None:
    """Return why nothing is planned on a device; None if something may be.

    `others` are the processes on it that are not ours; `most_bytes` is the most that can become free.
    """
    if reading.free_bytes is None:
        return reading.problem or FREE_UNKNOWN
    by_mode = left_out_by_mode(device, reading, tuple(others))
    reserve_bytes = device.reserve(rules.reserve_bytes)
    too_small = device.kind is not DeviceKind.HOST and most_bytes - reserve_bytes < rules.min_budget_bytes
    if by_mode is not None or not too_small:
        return by_mode
    return (
        f"{format_bytes(max(0, most_bytes))} free less {format_bytes(reserve_bytes)} of reserve "
        f"is under the minimum of {format_bytes(rules.min_budget_bytes)}"
    )


def left_out_warnings(budgets: Sequence[Budget]) -> tuple[str, ...]:
    """Return a sentence for each device that is not used, with the reason."""
    return tuple(f"{b.device.label} is left out: {b.left_out}" for b in budgets if b.left_out)
