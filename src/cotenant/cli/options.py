"""Flags of devices and engines that several commands share, with their environment variables."""

import argparse
import os
from pathlib import Path
from typing import Any

from cotenant.cli.flags import add_setting
from cotenant.clock import SystemClock
from cotenant.domain.devices import Inventory
from cotenant.domain.errors import UnknownDevice
from cotenant.domain.settings import setting_of
from cotenant.planning.budgets import BudgetRules


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add `--gpus`, `--devices` and `--device-order`; each has its COTENANT_ variable as the default."""
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--gpus",
        metavar="SPEC",
        default=os.environ.get("COTENANT_GPUS") or None,
        help="describe GPUs in place of this machine's: 24GiB,24GiB,12GiB, or 2xRTX 3090, "
        "or name:total MiB:used MiB, or a YAML file",
    )
    add_devices_option(group)
    add_setting(group, setting_of(BudgetRules, "order"))


def add_devices_option(parser: Any) -> None:
    """Add `--devices`, to a parser or a group of one."""
    parser.add_argument(
        "--devices",
        metavar="LIST",
        type=_names,
        default=os.environ.get("COTENANT_DEVICES", ""),
        help="use only these: indices, UUIDs or beginnings of UUIDs, separated by commas (default: all)",
    )


def add_llama_server_option(parser: argparse.ArgumentParser) -> None:
    """Add `--llama-server` to a command that only looks at engines."""
    parser.add_argument(
        "--llama-server",
        metavar="FILE",
        type=Path,
        default=os.environ.get("COTENANT_LLAMA_SERVER") or None,
        help="a llama-server to use before any other",
    )


def measured(described: str | None) -> Inventory:
    """Measure this machine's devices, or return the described ones. Raises BadDeviceSpec."""
    from cotenant.hardware.gpus.inventory import probe

    return probe(described, SystemClock()).inventory()


def read_inventory(args: argparse.Namespace) -> Inventory:
    """Measure or describe the devices that the flags ask for. Raises BadDeviceSpec or UnknownDevice."""
    return kept_to(measured(args.gpus), args.devices, described=args.gpus)


def kept_to(inventory: Inventory, devices: list[str], *, described: str | None) -> Inventory:
    """Return the inventory of the devices named, or allotted to this process. Raises UnknownDevice.

    A batch system or the user allots GPUs by environment variables. Engines get variables that Cotenant
    sets, which replace these. As in CUDA and ROCm, a list ends at the first invalid entry, and an empty one
    hides every GPU.
    """
    if described is not None or devices:
        return inventory.select(devices)
    vendor = inventory.vendor
    for allotment in vendor.traits.allotments if vendor else ():
        *others, last = allotment.variables
        variable = next((name for name in others if os.environ.get(name)), last)
        inventory = _kept(inventory, variable, by_place=allotment.by_place)
    return inventory


def _kept(inventory: Inventory, variable: str, *, by_place: bool) -> Inventory:
    given = os.environ.get(variable)
    if given is None or not inventory.has_gpus:
        return inventory
    allotted: list[str] = []
    for name in _names(given):
        if by_place and name.isdecimal():
            place = int(name[:9])
            name = inventory.devices[place].id if place < len(inventory.devices) else ""
        try:
            inventory.select([name])
        except UnknownDevice:
            break
        allotted.append(name)
    if allotted:
        return inventory.select(allotted)
    from cotenant.hardware.gpus.host import HostProbe

    return HostProbe(SystemClock()).inventory((f"{variable}={given!r} hides every GPU",))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
