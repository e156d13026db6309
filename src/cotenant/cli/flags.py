"""Flags with their COTENANT_ variables: of declared settings, and those that several commands share."""

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from cotenant.clock import SystemClock
from cotenant.config.fields import in_units_of_field, in_units_of_file, scalar_of
from cotenant.config.issues import shown
from cotenant.domain.devices import Inventory
from cotenant.domain.errors import BadRecipe, UnknownDevice, UsageError
from cotenant.domain.settings import Setting, setting_of, settings_of
from cotenant.planning.budgets import BudgetRules


def add_settings(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    """Add a flag for each setting that has one, under its group's heading."""
    groups: dict[str, Any] = {}
    for each in settings:
        if each.flag and each.group:
            group = groups.get(each.group) or parser.add_argument_group(each.group)
            add_setting(groups.setdefault(each.group, group), each)


def add_setting(group: Any, setting: Setting) -> None:
    """Add a setting's flag."""
    default = in_units_of_file(setting, setting.default)
    if setting.type is bool:
        switch(group, setting.option, default, setting.help, shown=setting.shown)
        return
    scalar = scalar_of(setting)

    def parse(text: str) -> Any:
        try:
            value = scalar.read(text)
        except UsageError as error:
            what = error.message.removeprefix(f"{setting.option} ")
            if what.startswith(shown(text)):
                what = what.replace(shown(text), repr(text), 1)
            source = f"{variable(setting.option)} sets it too. " if _is_set(setting.option) else ""
            raise type(error)(f"{setting.option} {what}", hint=source + error.hint) from None
        return Path(value) if setting.type is Path else value

    metavar = setting.metavar
    if isinstance(setting.type, type) and issubclass(setting.type, StrEnum):
        metavar = "|".join(setting.type) if len(setting.type) < 5 else "TYPE"
    flag(group, setting.option, parse, default, metavar, setting.help, shown=setting.shown)


def read_settings(args: argparse.Namespace, owner: type) -> dict[str, Any]:
    """Return the values of all flags that `owner` declares, by the names of its fields."""
    return {each.name: in_units_of_field(each, getattr(args, str(each.flag))) for each in settings_of(owner)}


def is_given(args: argparse.Namespace, setting: Setting) -> bool:
    """Whether a setting was set by its flag or its variable."""
    return setting.flag in getattr(args, "given", ()) or _is_set(setting.option)


class _Given(argparse.Action):
    """Stores a value, and that its flag was given: unlike a default, it overrides the file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


class _GivenSwitch(argparse.BooleanOptionalAction):
    """Stores a Boolean, and that its flag was given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        super().__call__(parser, namespace, values, option)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def flag(
    group: Any,
    name: str,
    parse: Callable[[str], object],
    default: object,
    metavar: str,
    text: str,
    *,
    shown: str = "",
) -> None:
    """Add a flag with a value. Its COTENANT_ variable, if set, is the default; `shown` describes it."""
    given = os.environ.get(variable(name)) or None
    if not shown and isinstance(default, (int, str)) and default != "":
        shown = str(default)
    group.add_argument(
        name,
        action=_Given,
        type=parse,
        default=default if given is None else given,
        metavar=metavar,
        help=f"{text} (default: {shown})" if shown else text,
    )


def switch(group: Any, name: str, default: bool, text: str, *, shown: str = "") -> None:
    """Add a flag and its `--no-` form."""
    shown = shown or ("on" if default else "off")
    given = os.environ.get(variable(name))
    if given is not None:
        default = given.lower() in ("1", "true", "yes", "on")
        if not default and given.lower() not in ("0", "false", "no", "off"):
            raise BadRecipe(f"{variable(name)}={given!r} is neither yes nor no", hint="Use 1 or 0.")
    group.add_argument(name, action=_GivenSwitch, default=default, help=f"{text} (default: {shown})")


def variable(name: str) -> str:
    """Return the environment variable of a flag: `--n-ctx` is COTENANT_N_CTX."""
    return "COTENANT_" + name.removeprefix("--").replace("-", "_").upper()


def _is_set(name: str) -> bool:
    return bool(os.environ.get(variable(name)))


def whole(name: str, least: int, most: int = 1 << 31) -> Callable[[str], int]:
    """Return a parser of whole numbers whose errors name the flag."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise BadRecipe(
                f"{name} {text!r} is not a whole number from {least:,} to {most:,}",
                hint=f"{variable(name)} sets it too." if variable(name) in os.environ else "See --help.",
            )
        return value

    return parse


def file_path(text: str) -> Path:
    """Read a path, `~` expanded."""
    return Path(text).expanduser()


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
    hides every GPU. `devices` are among those allotted, by the driver's indices whatever the variables say.
    """
    vendor = None if described is not None else inventory.vendor
    for allotment in vendor.traits.allotments if vendor else ():
        *others, last = allotment.variables
        variable = next((name for name in others if os.environ.get(name)), last)
        inventory = _kept(inventory, variable, by_place=allotment.by_place)
    return inventory.select(devices)


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
            lost = f"{variable}={given!r} names no GPU with {name[:40]!r}: its list ends there"
            inventory = replace(inventory, problems=(*inventory.problems, lost))
            break
        allotted.append(name)
    if allotted:
        return inventory.select(allotted)
    from cotenant.hardware.gpus.host import HostProbe

    return HostProbe(SystemClock()).inventory((f"{variable}={given!r} hides every GPU",))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
