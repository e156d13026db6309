"""Hypothetical GPUs in a YAML file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cotenant.domain.devices import ComputeMode, GpuProcess
from cotenant.domain.errors import BadDeviceSpec
from cotenant.domain.pci import normalise_bus_id
from cotenant.hardware.gpus.described_entry import DescribedGpu, complete, parse_entry, read_size

_EXAMPLE = "A file lists GPUs: `- {name: RTX A5500, total_mib: 24564, used_mib: 19304}`."
_FILE_KEYS = ("gpus", "live")
_GPU_KEYS = (
    "name",
    "total",
    "total_mib",
    "used",
    "used_mib",
    "uuid",
    "pci_bus_id",
    "compute_capability",
    "compute_mode",
    "bandwidth_gb_s",
    "processes",
    "utilisation_percent",
    "temperature_c",
    "power_w",
)
_PROCESS_KEYS = ("pid", "name", "used", "used_mib")
_MAX_FILE_BYTES = 256 * 1024
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]{1,80}")


@dataclass(frozen=True, slots=True)
class DescribedFile:
    """The GPUs of a file, each with where it stands there (`entry 2`).

    `live` says that the file changes as a driver's answers do, and is to be read anew at each look.
    """

    gpus: tuple[tuple[str, DescribedGpu], ...]
    live: bool = False


def read_file(path: Path) -> DescribedFile:
    """Read a file of GPUs: a list, or `gpus:` and perhaps `live: true`. Raises BadDeviceSpec."""
    document, live = _load(path), None
    if isinstance(document, dict):
        unknown = sorted(str(key) for key in document if key not in _FILE_KEYS)
        if unknown:
            raise BadDeviceSpec(
                f"{path} has a key {_shown(unknown[0])} beside or in place of gpus", hint=_EXAMPLE
            )
        try:
            live = _optional(document, "live", {"true": True, "false": False}.get)
        except BadDeviceSpec as error:
            raise BadDeviceSpec(f"{path}: {error.message}", hint=error.hint) from None
        document = document.get("gpus")
    if not isinstance(document, list) or not document:
        raise BadDeviceSpec(f"{path} holds no list of GPUs", hint=_EXAMPLE)
    return DescribedFile(tuple(_entries(path, document)), bool(live))


def _entries(path: Path, document: list[Any]) -> Iterator[tuple[str, DescribedGpu]]:
    for number, entry in enumerate(document, start=1):
        where = f"{path}, entry {number}"
        try:
            gpus = parse_entry(entry) if isinstance(entry, str) else [_gpu(entry)]
        except BadDeviceSpec as error:
            raise BadDeviceSpec(f"{where}: {error.message}", hint=error.hint) from None
        yield from ((where, gpu) for gpu in gpus)


def _load(path: Path) -> Any:
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadDeviceSpec(f"{path} cannot be read: {error.strerror}", hint=_EXAMPLE) from None
    except (ValueError, RuntimeError) as error:
        raise BadDeviceSpec(f"{str(path)!r} is no path: {error}", hint=_EXAMPLE) from None
    if len(content) > _MAX_FILE_BYTES:
        raise BadDeviceSpec(f"{path} is over 256 KiB, too large for a list of GPUs", hint=_EXAMPLE)
    try:
        # Only strings, lists and mappings: YAML would read the bus id 0000:01:00.0 as a number in base 60.
        return yaml.load(content, Loader=yaml.BaseLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise BadDeviceSpec(f"{path}, line {line}: {error.problem or 'not YAML'}", hint=_EXAMPLE) from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise BadDeviceSpec(f"{path} is not a YAML text file", hint=_EXAMPLE) from None


def _gpu(entry: Any) -> DescribedGpu:
    _check_keys(entry, _GPU_KEYS)
    name, total = _optional(entry, "name", str), _size(entry, "total")
    if name is None and total is None:
        raise BadDeviceSpec("it has neither a name nor a total", hint=_EXAMPLE)
    gpu = complete(name, total, _size(entry, "used") or 0)
    given = {
        "uuid": _optional(entry, "uuid", _uuid),
        "pci_bus_id": _optional(entry, "pci_bus_id", normalise_bus_id),
        "compute_capability": _optional(entry, "compute_capability", _capability),
        "compute_mode": _optional(entry, "compute_mode", _mode),
        "bandwidth_bytes_per_s": _optional(entry, "bandwidth_gb_s", _bandwidth),
        "processes": _processes(entry),
        "utilisation_percent": _optional(entry, "utilisation_percent", _percent),
        "temperature_c": _optional(entry, "temperature_c", _degrees),
        "power_w": _optional(entry, "power_w", _watts),
    }
    return replace(gpu, **{key: value for key, value in given.items() if value is not None})


def _processes(entry: dict[str, Any]) -> tuple[GpuProcess, ...] | None:
    if "processes" not in entry:
        return None
    if not isinstance(entry["processes"], list):
        raise BadDeviceSpec("processes is not a list", hint=_HINTS["processes"])
    return tuple(_process(process) for process in entry["processes"])


def _process(entry: Any) -> GpuProcess:
    _check_keys(entry, _PROCESS_KEYS)
    pid = _optional(entry, "pid", _pid)
    if pid is None:
        raise BadDeviceSpec("a process has no pid", hint=_HINTS["processes"])
    return GpuProcess(pid, _optional(entry, "name", str), _size(entry, "used"))


def _check_keys(entry: Any, known: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise BadDeviceSpec(f"{_shown(entry)} is not a mapping", hint=_EXAMPLE)
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
            raise BadDeviceSpec(f"unknown key {_shown(key)}", hint=hint)


def _optional(entry: dict[str, Any], key: str, read: Callable[[str], Any]) -> Any:
    """Return the value of `key` as `read` understands it; None if it is absent."""
    if key not in entry:
        return None
    text = entry[key]
    value = read(text) if isinstance(text, str) and text else None
    if value is None:
        raise BadDeviceSpec(f"{key} cannot be {_shown(text)}", hint=_HINTS.get(key, _EXAMPLE))
    return value


def _size(entry: dict[str, Any], key: str) -> int | None:
    if key in entry and f"{key}_mib" in entry:
        raise BadDeviceSpec(f"it has both {key} and {key}_mib", hint=_EXAMPLE)
    mib: int | None = _optional(entry, f"{key}_mib", lambda text: read_size(text, bare_mib=True))
    return _optional(entry, key, read_size) if mib is None else mib


def _uuid(text: str) -> str | None:
    return text if _UUID.fullmatch(text) else None


def _capability(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text)
    return (int(match[1]), int(match[2])) if match else None


def _mode(text: str) -> ComputeMode | None:
    return ComputeMode(text) if text in list(ComputeMode) else None


def _bandwidth(text: str) -> int | None:
    match = re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text)
    return round(float(text) * 10**9) or None if match else None


def _percent(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= 100 else None


def _degrees(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,3}", text) else None


def _watts(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) else None


def _pid(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_HINTS = {
    "live": "true where the file is to be read again at each look, else false.",
    "uuid": "A UUID begins with GPU- or MIG-.",
    "pci_bus_id": "Write it as nvidia-smi does: 0000:01:00.0.",
    "compute_capability": "Write it with a point, such as 8.6.",
    "compute_mode": f"One of {', '.join(ComputeMode)}.",
    "bandwidth_gb_s": "A number of GB/s above zero, such as 936.",
    "utilisation_percent": "A whole number from 0 to 100.",
    "temperature_c": "A whole number of degrees Celsius, such as 61.",
    "power_w": "A number of watts, such as 214.5.",
    "processes": "Write `processes: [{pid: 1234, name: python3, used_mib: 500}]`.",
    "pid": "A process id is a whole number.",
}
