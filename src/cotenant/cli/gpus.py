"""`cotenant gpus`: the devices of this machine, or of a description."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from cotenant.cli.options import add_device_options, read_inventory
from cotenant.domain.devices import (
    ComputeMode,
    Device,
    DeviceOrder,
    GpuProcess,
    Inventory,
)
from cotenant.domain.units import format_mib
from cotenant.planning.compute_modes import default_mode_command

_WIDTH = 100
_TITLES = {
    DeviceOrder.FREE_DESC: "GPUs sorted by free VRAM (GPU0 = highest)",
    DeviceOrder.TOTAL_DESC: "GPUs sorted by total VRAM (GPU0 = highest)",
    DeviceOrder.INDEX: "GPUs in index order",
}
_MODES = {
    ComputeMode.DEFAULT: "default",
    ComputeMode.EXCLUSIVE_PROCESS: "exclusive",
    ComputeMode.PROHIBITED: "prohibited",
}
_HEAD = ("", "idx", "name", "UUID", "PCI", "total", "used", "free", "CC", "mode", "GB/s")
_NAME = _HEAD.index("name")
_TO_THE_RIGHT = frozenset({"idx", "total", "used", "free", "CC", "GB/s"})


def register(subparsers: Any) -> None:
    """Add the command to the parser's commands."""
    parser = subparsers.add_parser("gpus", help="show the GPUs, their memory and the processes on them")
    parser.add_argument("--json", action="store_true", help="print JSON: bytes as integers, null for unknown")
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the inventory. Raises BadDeviceSpec or UnknownDevice."""
    inventory = read_inventory(args)
    order: DeviceOrder = args.device_order
    if args.json:
        print(json.dumps(as_json(inventory, order), indent=2, ensure_ascii=False))
    else:
        print("\n".join(as_text(inventory, order)))
    return 0


def as_json(inventory: Inventory, order: DeviceOrder) -> dict[str, Any]:
    """Return every fact, devices in the planned order; bytes are integers, unknown is None."""
    return {
        "source": inventory.source.value,
        "order": order.value,
        "driver_version": inventory.driver_version,
        "cuda_version": inventory.cuda_version,
        "problems": list(inventory.problems),
        "devices": [_device_json(inventory, device) for device in inventory.ordered(order)],
    }


def as_text(inventory: Inventory, order: DeviceOrder) -> Iterator[str]:
    """Yield the lines for people: a table, the processes, the problems."""
    devices = inventory.ordered(order)
    if inventory.has_gpus:
        yield from _gpus(inventory, devices, _TITLES[order])
        yield from _processes(inventory, devices)
    else:
        yield "No GPU that can be used: models run on the CPU, in host RAM."
        for device in devices:
            total, free = device.total_bytes, inventory.reading(device).free_bytes
            yield f"  {device.label}: {format_mib(total)} MiB in all, {format_mib(free)} MiB available"
    yield from _modes(inventory, devices)
    yield from _problems(inventory, devices)


def _modes(inventory: Inventory, devices: Sequence[Device]) -> Iterator[str]:
    """Say what a mode other than the default means for those who want to run something."""
    for rank, device in enumerate(devices):
        mode = inventory.reading(device).compute_mode
        if mode is ComputeMode.EXCLUSIVE_PROCESS:
            yield f"GPU{rank} is in Exclusive_Process mode: one process at a time, or several through MPS,"
            yield f"  which Cotenant starts where it is needed; `{default_mode_command(device)}` lifts it."
        elif mode is ComputeMode.PROHIBITED:
            yield f"GPU{rank} is in Prohibited mode and not used; `{default_mode_command(device)}` lifts it."


def _gpus(inventory: Inventory, devices: Sequence[Device], title: str) -> Iterator[str]:
    facts = [title]
    if inventory.source.is_described:
        facts.append("described, not of this machine")
    if inventory.driver_version:
        facts.append(f"driver {inventory.driver_version}")
    if inventory.cuda_version:
        facts.append(f"CUDA {inventory.cuda_version}")
    yield f"{', '.join(facts)}; memory in MiB:"
    uuid_width = _distinct_width(devices)
    yield from _table([_row(inventory, rank, device, uuid_width) for rank, device in enumerate(devices)])


def _row(inventory: Inventory, rank: int, device: Device, uuid_width: int) -> list[str]:
    reading = inventory.reading(device)
    capability, bandwidth = device.compute_capability, device.bandwidth_bytes_per_s
    return [
        f"GPU{rank}",
        _or_unknown(device.index),
        device.name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        device.id[:uuid_width],
        (device.pci_bus_id or "?").removeprefix("0000:"),
        format_mib(device.total_bytes),
        format_mib(reading.used_bytes),
        format_mib(reading.free_bytes),
        f"{capability[0]}.{capability[1]}" if capability else "?",
        _MODES[reading.compute_mode] if reading.compute_mode else "?",
        "?" if bandwidth is None else f"{bandwidth / 1e9:,.0f}",
    ]


def _table(rows: list[list[str]]) -> Iterator[str]:
    lines = [list(_HEAD), *rows]
    others = sum(max(len(line[i]) for line in lines) for i in range(len(_HEAD)) if i != _NAME)
    room = max(12, _WIDTH - 2 - others - 2 * (len(_HEAD) - 1))
    for row in rows:
        row[_NAME] = _shorten(row[_NAME], room)
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    for line in lines:
        cells = [
            cell.rjust(width) if title in _TO_THE_RIGHT else cell.ljust(width)
            for cell, width, title in zip(line, widths, _HEAD, strict=True)
        ]
        yield f"  {'  '.join(cells)}".rstrip()


def _processes(inventory: Inventory, devices: Sequence[Device]) -> Iterator[str]:
    listed = [inventory.reading(device).processes for device in devices]
    if inventory.source.is_described:
        listed = [processes or () for processes in listed]
        if not any(listed):
            return
    yield "Processes:" if any(processes is None or processes for processes in listed) else "Processes: none"
    for rank, processes in enumerate(listed):
        if processes is None:
            yield f"  GPU{rank}  unknown: the driver does not list them"
        for process in processes or ():
            used = "unknown" if process.used_bytes is None else f"{format_mib(process.used_bytes)} MiB"
            name = _shorten(process.name or "unknown program", _WIDTH - 40)
            yield f"  GPU{rank}  pid {process.pid:<8} {used:>12}  {name}"


def _problems(inventory: Inventory, devices: Sequence[Device]) -> Iterator[str]:
    for device in devices:
        problem = inventory.reading(device).problem
        if problem:
            yield f"Problem: {device.label}: {problem}"
    for problem in inventory.problems:
        yield f"Problem: {problem}"


def _device_json(inventory: Inventory, device: Device) -> dict[str, Any]:
    reading = inventory.reading(device)
    capability, mode, processes = device.compute_capability, reading.compute_mode, reading.processes
    return {
        "index": device.index,
        "kind": device.kind.value,
        "name": device.name,
        "uuid": device.id,
        "pci_bus_id": device.pci_bus_id,
        "parent_uuid": device.parent_id,
        "described": device.described,
        "total_bytes": device.total_bytes,
        "used_bytes": reading.used_bytes,
        "free_bytes": reading.free_bytes,
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability else None,
        "compute_mode": mode.value if mode else None,
        "bandwidth_bytes_per_s": device.bandwidth_bytes_per_s,
        "utilisation_percent": reading.utilisation_percent,
        "temperature_c": reading.temperature_c,
        "power_w": reading.power_w,
        "processes": None if processes is None else [_process_json(process) for process in processes],
        "problem": reading.problem,
    }


def _process_json(process: GpuProcess) -> dict[str, Any]:
    return {"pid": process.pid, "name": process.name, "used_bytes": process.used_bytes}


def _distinct_width(devices: Sequence[Device]) -> int:
    """Return how many characters tell the UUIDs apart, so that what is shown can be typed."""
    longest = max(len(device.id) for device in devices)
    for width in range(12, longest):
        if len({device.id[:width] for device in devices}) == len(devices):
            return width
    return longest


def _or_unknown(value: object) -> str:
    return "?" if value is None else str(value)


def _shorten(text: str, width: int) -> str:
    """Cut the middle out of a long text: its end often tells it from its kin, as a MIG slice's size does."""
    if len(text) <= width:
        return text
    kept = width - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
