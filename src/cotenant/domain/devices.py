"""Devices, their measurements, and the inventory of a machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Final, NewType

from cotenant.domain.errors import UnknownDevice
from cotenant.domain.vendors import InventorySource, Vendor

DeviceId = NewType("DeviceId", str)
"""The driver's UUID (`GPU-…`, `MIG-…`), or `host` for the RAM of this machine, `host@b` for node b's."""

HOST_ID = DeviceId("host")
_SYSTEM_PART: Final = 16
_SHORTEST_UUID: Final = 5
"""Of several machines, what is shorter than `GPU-` and a digit is the name of one of them."""
_BUS_ID = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)


class DeviceKind(StrEnum):
    """What kind of memory pool a device is."""

    GPU = "gpu"
    MIG = "mig"
    HOST = "host"


class ComputeMode(StrEnum):
    """How many processes a GPU admits at once."""

    DEFAULT = "default"
    EXCLUSIVE_PROCESS = "exclusive_process"
    PROHIBITED = "prohibited"


class DeviceOrder(StrEnum):
    """How devices are ordered before a model is placed on them."""

    FREE_DESC = "free_desc"
    TOTAL_DESC = "total_desc"
    INDEX = "index"


class MpsMode(StrEnum):
    """When engines run under MPS (CUDA's Multi-Process Service): where it is needed, always, or never."""

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


class MpsGroup(StrEnum):
    """Which cards one MPS daemon serves: all of them together, or each by itself."""

    ALL = "all"
    CARD = "card"


@dataclass(frozen=True, slots=True)
class MpsTerms:
    """What an engine gets of cards that it shares through MPS: None for no limit.

    `threads_percent` is of each card's SMs; `margin_bytes` is what it may take beyond its plan.
    """

    margin_bytes: int | None = None
    threads_percent: int | None = None


NO_MPS_TERMS = MpsTerms()


@dataclass(frozen=True, slots=True)
class Device:
    """One memory pool: a card, a MIG slice, or host RAM. Unknown is None.

    `index` is the card's, for a MIG slice its parent's; `slice_number` is the slice's within its card, as
    `nvidia-smi -L` counts. A `described` device is one that `--gpus` describes:
    plans may use it, but no process of this machine can run on it. `node` is the machine that it is part of,
    None for this one if there are no others. `runtime_name` is its name in the vendor's
    runtime, a UUID or an index, if that is not the id; `render_node` is the number of its device
    file under /dev/dri, if the runtime needs it. A `unified` GPU has no memory of its own: its pool is host
    RAM, which is no other device then.
    """

    id: DeviceId
    kind: DeviceKind
    name: str
    index: int | None = None
    total_bytes: int | None = None
    pci_bus_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    bandwidth_bytes_per_s: int | None = None
    parent_id: DeviceId | None = None
    node: str | None = None
    described: bool = False
    vendor: Vendor | None = None
    runtime_name: str | None = None
    render_node: int | None = None
    slice_number: int | None = None
    unified: bool = False

    def reserve(self, configured_bytes: int) -> int:
        """Return the bytes that stay free: those configured; of host RAM shared with a GPU, a share at least.

        The operating system and every other program live there, too.
        """
        return max(configured_bytes, self.system_bytes)

    @property
    def system_bytes(self) -> int:
        """What is never planned, since the operating system needs it: of a unified pool 1/16."""
        return (self.total_bytes or 0) // _SYSTEM_PART if self.unified else 0

    @property
    def number(self) -> str:
        """The driver's index, the only number shown: `GPU 0`, `MIG 0:1` (its slice 1), or `host RAM`."""
        if self.kind is DeviceKind.HOST:
            return self.name
        number = ":".join(str(each) for each in (self.index, self.slice_number) if each is not None) or "?"
        return f"{'MIG' if self.kind is DeviceKind.MIG else 'GPU'} {number}"

    @property
    def own_name(self) -> str:
        """The name, with its number if it is a slice of a card: slices of one profile have the same name."""
        return self.name if self.slice_number is None else f"{self.name} ({self.number[4:]})"

    @property
    def label(self) -> str:
        """Name the device for people: `GPU 0 NVIDIA GeForce RTX 3090`, on a node `b GPU 0 …`; `host RAM`."""
        label = self.name if self.kind is DeviceKind.HOST else f"{self.number} {self.name}"
        return label if self.node is None else f"{self.node} {label}"

    @property
    def spelling(self) -> str:
        """What names it, and no other, where people choose devices: `0`, `b:0` of a node, or its id."""
        own = self.id if self.index is None or self.slice_number is not None else str(self.index)
        return own if self.node is None or own == self.id else f"{self.node}:{own}"

    def is_named(self, name: str) -> bool:
        """Whether a `name` that people give means it: its index, its id or the beginning of that.

        On a node also the node, or its index there: `b`, `b:0`. An index means all slices of a card.
        """
        wanted, node = name.lower(), (self.node or "").lower()
        if wanted.isdecimal():
            return str(self.index) == wanted
        if node and (wanted == node or (self.index is not None and wanted == f"{node}:{self.index}")):
            return True
        too_short = bool(node) and len(wanted) < _SHORTEST_UUID
        return bool(wanted) and not too_short and self.id.lower().startswith(wanted)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a device. `used_bytes` is None if the driver does not report it."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Display:
    """How a sensor is shown: its name, its unit, and a sentence that explains it."""

    label: str
    unit: str
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """What a device's driver reports besides its memory; unknown is None.

    A sensor with a Display is shown by `cotenant top` and on the console's cards.
    """

    utilisation_percent: float | None = field(
        default=None,
        metadata={"display": Display("Utilisation", "%", "Share of recent time in which it computed")},
    )
    temperature_c: float | None = field(
        default=None, metadata={"display": Display("Temperature", "°C", "Temperature")}
    )
    power_w: float | None = field(default=None, metadata={"display": Display("Power", "W", "Power")})
    clock_mhz: float | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all sensors."""
        return tuple(each.name for each in fields(Sensors))

    @classmethod
    def displays(cls) -> Mapping[str, Display]:
        """Return the sensors that are shown, by name."""
        return {each.name: each.metadata["display"] for each in fields(Sensors) if each.metadata}


@dataclass(frozen=True, slots=True)
class Reading(Sensors):
    """A dated measurement of one device; `at` is seconds of the clock that took it. Unknown is None.

    `problem` says in one sentence why something is unknown; a device with unknown `free_bytes` is
    never planned on. `processes` is None if the driver does not list them.
    """

    device_id: DeviceId
    at: float
    used_bytes: int | None = None
    free_bytes: int | None = None
    compute_mode: ComputeMode | None = None
    processes: tuple[GpuProcess, ...] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of a machine with one Reading each, in index order, and how they were found.

    `problems` are sentences about the whole machine (the driver is missing, a card is lost). `host` is host
    RAM alone, measured with the GPUs; None if it is among the devices, or unknown.
    """

    source: InventorySource
    devices: tuple[Device, ...]
    readings: Mapping[DeviceId, Reading]
    driver_version: str | None = None
    cuda_version: str | None = None
    problems: tuple[str, ...] = ()
    host: Inventory | None = None

    @property
    def has_gpus(self) -> bool:
        """Whether any device is not host RAM."""
        return any(device.kind is not DeviceKind.HOST for device in self.devices)

    @property
    def vendor(self) -> Vendor | None:
        """The vendor of its GPUs, the same for all; None without GPUs."""
        return next((device.vendor for device in self.devices if device.vendor is not None), None)

    def reading(self, device: Device) -> Reading:
        """Return the device's Reading, empty (all unknown) if there is none."""
        return self.readings.get(device.id) or Reading(device.id, at=0.0)

    def ordered(self, order: DeviceOrder) -> tuple[Device, ...]:
        """Sort the devices; unknown sizes come last, ties keep index order."""
        if order is DeviceOrder.INDEX:
            return self.devices

        def size(device: Device) -> int:
            by_free = order is DeviceOrder.FREE_DESC
            value = self.reading(device).free_bytes if by_free else device.total_bytes
            return -1 if value is None else value

        return tuple(sorted(self.devices, key=size, reverse=True))

    def select(self, names: Sequence[str]) -> Inventory:
        """Keep the devices with these `names`: indices, UUIDs or unambiguous UUID prefixes; nodes, as `b`.

        An index means the card, or all slices of a card in MIG mode. `all` or nothing keeps every device.
        Raises UnknownDevice, which lists the valid names.
        """
        if not names or list(names) == ["all"]:
            return self
        wanted = {device.id for name in names for device in self._find(name)}
        kept = tuple(device for device in self.devices if device.id in wanted)
        return replace(self, devices=kept, readings={device.id: self.reading(device) for device in kept})

    def on_node(self, node: str) -> Inventory:
        """Return the inventory as that of a node among others, with ids that no other node has."""

        def id_of(device: Device) -> DeviceId:
            if device.kind is DeviceKind.HOST:
                return host_id(node)
            return DeviceId(f"{device.id}@{node}") if device.described else device.id

        moved = tuple(replace(device, id=id_of(device), node=node) for device in self.devices)
        readings = {
            new.id: replace(self.reading(old), device_id=new.id)
            for old, new in zip(self.devices, moved, strict=True)
        }
        host = self.host and self.host.on_node(node)
        return replace(self, devices=moved, readings=readings, host=host)

    def _find(self, name: str) -> tuple[Device, ...]:
        prefix = name.lower()
        not_by_id = [d for d in self.devices if d.is_named(name) and not d.id.lower().startswith(prefix)]
        if not_by_id:
            return tuple(not_by_id)
        found = [device for device in self.devices if name and device.id.lower().startswith(prefix)]
        found = [device for device in found if device.id.lower() == prefix] or found
        if len(found) == 1:
            return tuple(found)
        known = ", ".join(f"{'-' if d.index is None else d.index} ({d.id})" for d in self.devices) or "none"
        what = "names more than one device" if found else "names no device"
        hint = " ".join((f"Devices of this machine: {known}.", *self.problems))
        raise UnknownDevice(f"{name!r} {what}", hint=hint)


def host_id(node: str | None) -> DeviceId:
    """Return the id of the RAM of a node; None is this machine."""
    return HOST_ID if node is None else DeviceId(f"{HOST_ID}@{node}")


def is_host(device: DeviceId) -> bool:
    """Whether an id is that of a machine's RAM."""
    return device == HOST_ID or device.startswith(f"{HOST_ID}@")


def unclear_index(names: Sequence[str], devices: Sequence[Device]) -> str | None:
    """Return why a bare index among `names` means no certain device; None if it does, or there is none.

    It is the index of a card of the only machine.
    """
    index = next((name for name in names if name.isdecimal()), None)
    nodes = dict.fromkeys(device.node for device in devices)
    if index is None or len(nodes) < 2:
        return None
    cards = dict.fromkeys(f"{d.node}:{d.index}" for d in devices if d.node and str(d.index) == index)
    spellings = ", ".join(f"`{card}`" for card in cards) or f"`NODE:{index}`"
    return (
        f"{index} is an index on each of {len(nodes)} machines: write {spellings}, the name of a machine for "
        "all of its GPUs, or a UUID"
    )


def launch_environment(devices: Sequence[Device]) -> dict[str, str]:
    """Return the variables that make a vendor's runtime number exactly `devices`, in their order, from 0.

    Host RAM has no number. Described devices are left out, since CUDA stops at the first entry that it does
    not know. A process planned on host RAM or on described devices thus sees no GPU, and cannot take
    memory that was not planned. A plan never mixes vendors.
    """
    real = [d for d in devices if d.kind is not DeviceKind.HOST and not d.described]
    vendor = real[0].vendor if real else None
    if vendor is None:
        return {name: value for each in Vendor for name, value in each.traits.hidden.items()}
    return dict(vendor.traits.environment([d.runtime_name or d.id for d in real]))


def normalise_bus_id(text: str) -> str | None:
    """Write a bus id as CUDA and llama.cpp print it, `0000:01:00.0`; None if it is no bus id.

    NVML writes the domain with eight digits, and `lspci` may leave it out.
    """
    match = _BUS_ID.fullmatch(text.strip())
    if match is None:
        return None
    domain = int(match[1] or "0", 16)
    return f"{domain:04x}:{match[2]}:{match[3]}.{match[4]}".lower()
