"""Reads llama.cpp's memory report from its log."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cotenant.domain.devices import Device, normalise_bus_id
from cotenant.domain.engines import EngineReport, ReportedDevice
from cotenant.domain.models import Parts
from cotenant.domain.units import MIB

_USING: Final = re.compile(r"using device (\S+) \((.*)\) \(([^()]*)\) - \d+ MiB free")
_BUFFER: Final = re.compile(
    r"(\w+):\s+(\S+)\s+(model|LoRA|KV|RS|DSV4 \S+ state|compute) buffer size\s*=\s*([\d.]+) MiB"
)
_NEW_CONTEXT: Final = "constructing llama_context"
_CLIP_BACKEND: Final = re.compile(r"CLIP using (\S+) backend")
_CLIP_WEIGHTS: Final = re.compile(r": model size:\s+([\d.]+) MiB")
_NOT_DEVICES: Final = re.compile(r"CPU|BLAS|AMX|.*_Host$")
_HOST_NAME: Final = "host"
_LENT: Final = "RPC"


@dataclass(slots=True)
class _Seen:
    """What one pass over a log collects, in MiB per device name."""

    pci: dict[str, str | None] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    weights: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    kv: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    # By context and function: a context that reserves again prints again, and the last value counts.
    compute: dict[tuple[str, int, str], float] = field(default_factory=dict)
    contexts: int = 0
    clip_backend: str = "CPU"


def parse_report(lines: Iterable[str]) -> EngineReport | None:
    """Add up the buffer lines of a load (level 4); None if there are none.

    Model and adapter buffers are weights, KV and recurrent state are kv. Everything in host RAM, pinned,
    mapped or repacked, is one device, `CPU`. The output buffer (`parallel` rows of logits in pinned RAM) is
    left out, as in the engine's own breakdown.
    """
    seen = _collect(lines)
    names = list(dict.fromkeys((*seen.pci, *seen.weights, *seen.kv, *(name for name, *_ in seen.compute))))
    if not (seen.weights or seen.kv or seen.compute):
        return None
    devices = [
        ReportedDevice(name, seen.pci.get(name), _parts(seen, name)) for name in names if name != _HOST_NAME
    ]
    host = ReportedDevice("CPU", None, _parts(seen, _HOST_NAME), on_host=True)
    return EngineReport((*devices, host))


def without_lent(report: EngineReport) -> EngineReport:
    """Return a report without the GPUs that other machines lend."""
    return EngineReport(tuple(each for each in report.devices if not each.name.startswith(_LENT)))


def missing_devices(planned: Sequence[Device], report: EngineReport) -> tuple[Device, ...]:
    """Return the planned GPUs that the report does not name, compared by PCI id, else by number."""
    found = [device for device in report.devices if not device.on_host]
    addresses = {device.pci_bus_id for device in found if device.pci_bus_id is not None}
    if len(addresses) == len(found) and all(device.pci_bus_id is not None for device in planned):
        return tuple(device for device in planned if device.pci_bus_id not in addresses)
    return tuple(planned[len(found) :])


def compute_bytes(lines: Iterable[str]) -> dict[str, int]:
    """Return the compute buffers alone, by device; host RAM is under `CPU`."""
    seen = _collect(lines)
    names = {name for name, *_ in seen.compute}
    return {("CPU" if name == _HOST_NAME else name): _parts(seen, name).compute for name in names}


def _collect(lines: Iterable[str]) -> _Seen:
    seen = _Seen()
    for line in lines:
        if match := _BUFFER.search(line):
            function, device, kind, mib = match[1], _device(seen, match[2]), match[3], float(match[4])
            if kind == "compute":
                seen.compute[device, seen.contexts, function] = mib
            else:
                (seen.weights if kind in ("model", "LoRA") else seen.kv)[device] += mib
        elif match := _USING.search(line):
            seen.pci[match[1]] = normalise_bus_id(match[3])
            seen.descriptions[match[1]] = match[2]
        elif _NEW_CONTEXT in line:
            seen.contexts += 1
        elif match := _CLIP_BACKEND.search(line):
            seen.clip_backend = match[1]
            seen.contexts += 1
        elif match := _CLIP_WEIGHTS.search(line):
            seen.weights[_device(seen, seen.clip_backend)] += float(match[1])
    return seen


def _device(seen: _Seen, buffer: str) -> str:
    """Name the device that a buffer is on: `CUDA0`, or `host` for every kind of RAM."""
    if _NOT_DEVICES.match(buffer):
        return _HOST_NAME
    if buffer in seen.pci:
        return buffer
    name, bracket, endpoint = buffer.partition("[")
    if bracket:
        # RPC buffers are numbered per server; the server's address says whose they are.
        by_address = [n for n, text in seen.descriptions.items() if text == endpoint.rstrip("]")]
        number = int(name.removeprefix(_LENT) or 0) if name.removeprefix(_LENT).isdecimal() else 0
        return by_address[number] if number < len(by_address) else name
    return name.removesuffix("_Mapped").removesuffix("_Private").removesuffix("_Split")


def _parts(seen: _Seen, device: str) -> Parts:
    compute = sum(mib for (name, *_), mib in seen.compute.items() if name == device)
    return Parts(
        weights=round(seen.weights.get(device, 0) * MIB),
        kv=round(seen.kv.get(device, 0) * MIB),
        compute=round(compute * MIB),
    )
