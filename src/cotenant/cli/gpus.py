"""`cotenant gpus`: the devices of this machine, or of a description; the drains of a daemon's."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, NamedTuple

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.flags import add_device_options, read_inventory
from cotenant.cli.move import register_drains
from cotenant.cli.ps import fragmentation_lines, stranded_bytes
from cotenant.cli.render import unified_lines
from cotenant.cli.table import Column, attributes, cut_middle, print_result, table_lines
from cotenant.domain.devices import ComputeMode, Device, DeviceOrder, Inventory, Reading, Sensors
from cotenant.domain.errors import CotenantError
from cotenant.domain.units import format_mib
from cotenant.planning.compute_modes import default_mode_command

_WIDTH = 100
_WITHIN_S = 3.0
_TITLES = {
    DeviceOrder.FREE_DESC: "GPUs sorted by free VRAM, the highest first",
    DeviceOrder.TOTAL_DESC: "GPUs sorted by total VRAM, the highest first",
    DeviceOrder.INDEX: "GPUs in index order",
}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--json", action="store_true", help="print JSON: bytes as integers, null for unknown")
    parser.add_argument("--csv", action="store_true", help="print CSV, a line for each device: null is empty")
    add_device_options(parser)
    add_daemon_options(parser)
    register_drains(parser)


def run(args: argparse.Namespace) -> int:
    """Print the inventory, and what a daemon that answers says of its free memory.

    Raises BadDeviceSpec or UnknownDevice.
    """
    inventory = read_inventory(args)
    order: DeviceOrder = args.device_order
    told = {} if inventory.source.is_described else _of_daemon(args)
    found = told.get("fragmentation")
    if found is not None and not any(device.id in found["by_device"] for device in inventory.devices):
        found = None
    fleet = [device for device in told.get("devices", ()) if device["node"] is not None]
    value = {**as_json(inventory, order, found), **({"fleet": fleet} if fleet else {})}
    rows = ({**device, "processes": _pids(device["processes"])} for device in value["devices"])
    return print_result(args, value, chain(as_text(inventory, order, found), fleet_lines(fleet)), rows)


def _of_daemon(args: argparse.Namespace) -> Mapping[str, Any]:
    """Return what a daemon says of its devices; nothing without one."""
    try:
        found: Mapping[str, Any] = Daemon(args).get("/api/devices", _WITHIN_S)
    except CotenantError:
        # The cards are shown without a daemon, too.
        return {}
    return found


def fleet_lines(devices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines about the devices of a daemon's machines; none without several machines."""
    if not devices:
        return
    yield ""
    yield "GPUs of the daemon's machines, memory in MiB:"
    for line in table_lines(_FLEET_COLUMNS, devices, width=_WIDTH - 2):
        yield f"  {line}"


def as_json(
    inventory: Inventory, order: DeviceOrder, fragmentation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return every fact, devices in the planned order; bytes are integers, unknown is None."""
    by_device = fragmentation["by_device"] if fragmentation else {}
    return {
        "source": inventory.source.value,
        "order": order.value,
        "driver_version": inventory.driver_version,
        "cuda_version": inventory.cuda_version,
        "problems": list(inventory.problems),
        "devices": [
            {
                **_device_json(inventory, device),
                "stranded_bytes": by_device.get(device.id, {}).get("stranded_bytes"),
                "fragmentation_ratio": by_device.get(device.id, {}).get("ratio"),
            }
            for device in inventory.ordered(order)
        ],
    }


def as_text(
    inventory: Inventory, order: DeviceOrder, fragmentation: Mapping[str, Any] | None = None
) -> Iterator[str]:
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
    yield from unified_lines(devices)
    for device in devices:
        if stranded := stranded_bytes(fragmentation, device.id):
            mib = format_mib(stranded)
            yield f"{device.label}: {mib} MiB are free, but no model that is served could use them"
    yield from fragmentation_lines(fragmentation)
    yield from _modes(inventory, devices)
    for device in devices:
        problem = inventory.reading(device).problem
        if problem:
            yield f"Problem: {device.label}: {problem}"
    for problem in inventory.problems:
        yield f"Problem: {problem}"


def _modes(inventory: Inventory, devices: Sequence[Device]) -> Iterator[str]:
    for device in devices:
        mode, lifts = inventory.reading(device).compute_mode, f"`{default_mode_command(device)}` lifts it."
        if mode is ComputeMode.EXCLUSIVE_PROCESS:
            yield f"{device.label} is in Exclusive_Process mode: one process at a time, or several"
            yield f"  through MPS, which Cotenant starts if needed; {lifts}"
        elif mode is ComputeMode.PROHIBITED:
            yield f"{device.label} is in Prohibited mode and not used; {lifts}"


def _gpus(inventory: Inventory, devices: Sequence[Device], title: str) -> Iterator[str]:
    facts = [title]
    if inventory.source.is_described:
        facts.append("described, not of this machine")
    if inventory.driver_version:
        facts.append(f"driver {inventory.driver_version}")
    if inventory.cuda_version:
        facts.append(f"CUDA {inventory.cuda_version}")
    yield f"{', '.join(facts)}; memory in MiB:"
    columns = _columns(_distinct_width(devices))
    rows = [_Row(device, inventory.reading(device)) for device in devices]
    for line in table_lines(columns, rows, width=_WIDTH - 2):
        yield f"  {line}"


class _Row(NamedTuple):
    device: Device
    reading: Reading


def _columns(uuid_width: int) -> Sequence[Column[_Row]]:
    return (
        Column("GPU", lambda row: _known(row.device.index), right=True),
        Column("name", lambda row: short_name(row.device.own_name), min_width=12, cut=cut_middle),
        Column("UUID", lambda row: row.device.id[:uuid_width]),
        Column("PCI", lambda row: _known(row.device.pci_bus_id).removeprefix("0000:")),
        Column("total", lambda row: format_mib(row.device.total_bytes), right=True),
        Column("used", lambda row: format_mib(row.reading.used_bytes), right=True),
        Column("free", lambda row: format_mib(row.reading.free_bytes), right=True),
        Column("CC", lambda row: _known(_capability(row.device)), right=True),
        Column("mode", lambda row: _known(row.reading.compute_mode).removesuffix("_process")),
        Column(
            "GB/s",
            lambda row: f"{b / 1e9:,.0f}" if (b := row.device.bandwidth_bytes_per_s) is not None else "?",
            right=True,
        ),
    )


_FLEET_COLUMNS: Sequence[Column[Mapping[str, Any]]] = (
    Column("NODE", lambda device: str(device["node"])),
    Column(
        "GPU", lambda device: _known(device["index"]) if device["index"] is not None else "RAM", right=True
    ),
    Column("name", lambda device: short_name(device["name"]), min_width=12, cut=cut_middle),
    Column("total", lambda device: format_mib(device["total_bytes"]), right=True),
    Column("ours", lambda device: format_mib(device["claimed_bytes"]), right=True),
    Column("free", lambda device: format_mib(device["free_bytes"]), right=True),
    Column("", lambda device: device["left_out"] or device["drain"] or ""),
)


def short_name(name: str) -> str:
    """Return a GPU's name without the manufacturer's."""
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _known(value: object) -> str:
    return "?" if value is None else str(value)


def _capability(device: Device) -> str | None:
    capability = device.compute_capability
    return f"{capability[0]}.{capability[1]}" if capability else None


def _processes(inventory: Inventory, devices: Sequence[Device]) -> Iterator[str]:
    listed = [inventory.reading(device).processes for device in devices]
    if inventory.source.is_described:
        listed = [processes or () for processes in listed]
        if not any(listed):
            return
    yield "Processes:" if any(processes is None or processes for processes in listed) else "Processes: none"
    for device, processes in zip(devices, listed, strict=True):
        if processes is None:
            yield f"  {device.number}  unknown: the driver does not list them"
        for process in processes or ():
            used = "unknown" if process.used_bytes is None else f"{format_mib(process.used_bytes)} MiB"
            name = cut_middle(process.name or "unknown program", _WIDTH - 40)
            yield f"  {device.number}  pid {process.pid:<8} {used:>12}  {name}"


def _device_json(inventory: Inventory, device: Device) -> dict[str, Any]:
    reading = inventory.reading(device)
    mode, processes = reading.compute_mode, reading.processes
    return {
        "index": device.index,
        "kind": device.kind.value,
        "name": device.own_name,
        "uuid": device.id,
        "pci_bus_id": device.pci_bus_id,
        "parent_uuid": device.parent_id,
        "unified": device.unified,
        "described": device.described,
        "total_bytes": device.total_bytes,
        **attributes(reading, "used_bytes free_bytes"),
        "compute_capability": _capability(device),
        "compute_mode": mode.value if mode else None,
        "bandwidth_bytes_per_s": device.bandwidth_bytes_per_s,
        **{name: getattr(reading, name) for name in Sensors.displays()},
        "processes": None if processes is None else [asdict(process) for process in processes],
        "problem": reading.problem,
    }


def _pids(processes: Sequence[dict[str, Any]] | None) -> str | None:
    return None if processes is None else " ".join(str(process["pid"]) for process in processes)


def _distinct_width(devices: Sequence[Device]) -> int:
    """Return how many characters make the UUIDs unique: what is shown can be given to `--devices`."""
    longest = max(len(device.id) for device in devices)
    distinct = (w for w in range(12, longest) if len({device.id[:w] for device in devices}) == len(devices))
    return next(distinct, longest)
