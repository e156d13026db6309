"""What may be planned on each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cotenant.domain.devices import Device, DeviceKind, DeviceOrder, GpuProcess, Inventory, Reading
from cotenant.domain.placements import Budget
from cotenant.domain.settings import setting
from cotenant.domain.units import MIB, format_bytes
from cotenant.planning.compute_modes import left_out_by_mode

FREE_UNKNOWN: Final = "its free memory is unknown"


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """How free memory becomes a budget.

    `reserve_bytes` stays free on every device; a device with less than `min_budget_bytes` is left out;
    `overhead_bytes` is what a process takes on a GPU besides weights, KV and compute: the CUDA context and
    its pools, 107 to 555 MiB where it was reported. `overheads` replaces it for devices of a name on which it
    was measured (`calibration.learned_overheads`).
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
    overheads: Mapping[str, int] = field(default_factory=dict, hash=False)


def budgets(inventory: Inventory, rules: BudgetRules) -> tuple[Budget, ...]:
    """Return one Budget per device, in planned order."""
    return tuple(
        _budget(device, inventory.reading(device), rules) for device in inventory.ordered(rules.order)
    )


def overhead_bytes(device: Device, rules: BudgetRules) -> int:
    """Return what a process takes on this device beyond what the engine reports; none in host RAM."""
    if device.kind is DeviceKind.HOST:
        return 0
    return rules.overheads.get(device.name, rules.overhead_bytes)


def why_left_out(
    device: Device, reading: Reading, others: Sequence[GpuProcess], most_bytes: int, rules: BudgetRules
) -> str | None:
    """Return why nothing is planned on a device; None if something may be.

    `others` are the processes on it that are not ours, `most_bytes` is what could be free for us at most.
    """
    if reading.free_bytes is None:
        return reading.problem or FREE_UNKNOWN
    by_mode = left_out_by_mode(device, reading, tuple(others))
    too_small = (
        device.kind is not DeviceKind.HOST and most_bytes - rules.reserve_bytes < rules.min_budget_bytes
    )
    if by_mode is not None or not too_small:
        return by_mode
    return (
        f"{format_bytes(max(0, most_bytes))} free less {format_bytes(rules.reserve_bytes)} of reserve "
        f"is under the minimum of {format_bytes(rules.min_budget_bytes)}"
    )


def left_out_warnings(budgets: Sequence[Budget]) -> tuple[str, ...]:
    """Say which devices are not used, and why."""
    return tuple(f"{b.device.label} is left out: {b.left_out}" for b in budgets if b.left_out)


def _budget(device: Device, reading: Reading, rules: BudgetRules) -> Budget:
    free = reading.free_bytes
    left_out = why_left_out(device, reading, reading.processes or (), free or 0, rules)
    return Budget(device, free, 0 if left_out else max(0, (free or 0) - rules.reserve_bytes), left_out)
