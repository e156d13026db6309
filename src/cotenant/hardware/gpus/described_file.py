"""Described GPUs in a YAML file."""

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from cotenant.domain.devices import ComputeMode, GpuProcess, normalise_bus_id
from cotenant.domain.errors import BadDeviceSpec
from cotenant.hardware.gpus.described_entry import (
    DescribedGpu,
    complete,
    parse_entry,
    read_entries,
    read_size,
)

_EXAMPLE = "A file lists GPUs: `- {name: RTX A5500, total_mib: 24564, used_mib: 19304}`."
_FILE_KEYS = ("gpus", "live")
_MAX_FILE_BYTES = 256 * 1024


def read_file(path: Path) -> tuple[tuple[tuple[str, DescribedGpu], ...], bool]:
    """Read a file of GPUs: a list, or `gpus:` and perhaps `live: true`. Raises BadDeviceSpec.

    Return each with its place in the file (`entry 2`), and whether the file is live: it changes, as a
    driver's answers do, and is read again for each inventory.
    """
    document, live = _load(path), None
    if isinstance(document, dict):
        unknown = sorted(str(key) for key in document if key not in _FILE_KEYS)
        if unknown:
            raise BadDeviceSpec(
                f"{path} has a key {_shown(unknown[0])} other than gpus or live", hint=_EXAMPLE
            )
        try:
            hint = "true if the file is to be read again each time, else false."
            live = _optional(document, "live", {"true": True, "false": False}.get, hint)
        except BadDeviceSpec as error:
            raise BadDeviceSpec(f"{path}: {error.message}", hint=error.hint) from None
        document = document.get("gpus")
    if not isinstance(document, list) or not document:
        raise BadDeviceSpec(f"{path} holds no list of GPUs", hint=_EXAMPLE)
    entries = ((f"{path}, entry {number}", entry) for number, entry in enumerate(document, start=1))
    return read_entries(entries, _gpus), bool(live)


def _gpus(entry: Any) -> list[DescribedGpu]:
    return parse_entry(entry) if isinstance(entry, str) else [_gpu(entry)]


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
    _check_keys(entry, (*_SIZES, *_GPU_KEYS, "processes"))
    name, total = _optional(entry, "name", str), _size(entry, "total")
    if name is None and total is None:
        raise BadDeviceSpec("it has neither a name nor a total", hint=_EXAMPLE)
    gpu = complete(name, total, _size(entry, "used") or 0)
    given = {key.field or name: _optional(entry, name, key.read, key.hint) for name, key in _GPU_KEYS.items()}
    given["processes"] = _processes(entry)
    return replace(gpu, **{field: value for field, value in given.items() if value is not None})


def _processes(entry: dict[str, Any]) -> tuple[GpuProcess, ...] | None:
    if "processes" not in entry:
        return None
    if not isinstance(entry["processes"], list):
        raise BadDeviceSpec("processes is not a list", hint=_PROCESSES_HINT)
    return tuple(_process(process) for process in entry["processes"])


def _process(entry: Any) -> GpuProcess:
    _check_keys(entry, ("pid", "name", "used", "used_mib"))
    pid = _optional(entry, "pid", _pattern(r"[0-9]{1,10}", int), "A process id is a whole number.")
    if pid is None:
        raise BadDeviceSpec("a process has no pid", hint=_PROCESSES_HINT)
    return GpuProcess(pid, _optional(entry, "name", str), _size(entry, "used"))


def _check_keys(entry: Any, known: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise BadDeviceSpec(f"{_shown(entry)} is not a mapping", hint=_EXAMPLE)
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
            raise BadDeviceSpec(f"unknown key {_shown(key)}", hint=hint)


def _optional(entry: dict[str, Any], key: str, read: Callable[[str], Any], hint: str = _EXAMPLE) -> Any:
    """Return the value of `key` as `read` understands it; None if it is absent."""
    if key not in entry:
        return None
    text = entry[key]
    value = read(text) if isinstance(text, str) and text else None
    if value is None:
        raise BadDeviceSpec(f"{key} cannot be {_shown(text)}", hint=hint)
    return value


def _size(entry: dict[str, Any], key: str) -> int | None:
    if key in entry and f"{key}_mib" in entry:
        raise BadDeviceSpec(f"it has both {key} and {key}_mib", hint=_EXAMPLE)
    mib: int | None = _optional(entry, f"{key}_mib", lambda text: read_size(text, bare_mib=True))
    return _optional(entry, key, read_size) if mib is None else mib


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _pattern(pattern: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader of texts that match; it returns None for others."""
    return lambda text: read(text) if re.fullmatch(pattern, text) else None


def _percent(text: str) -> int | None:
    return int(text) if int(text) <= 100 else None


def _capability(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


class _Key(NamedTuple):
    """One key of a GPU's entry: how it is read, and its field of DescribedGpu if that has another name."""

    read: Callable[[str], Any]
    hint: str
    field: str | None = None


_SIZES: Final = ("name", "total", "total_mib", "used", "used_mib")
_PROCESSES_HINT: Final = "Write `processes: [{pid: 1234, name: python3, used_mib: 500}]`."
_GPU_KEYS: Final = {
    "uuid": _Key(_pattern(r"(GPU|MIG)-[0-9A-Za-z/-]{1,80}", str), "A UUID begins with GPU- or MIG-."),
    "pci_bus_id": _Key(normalise_bus_id, "Write it as nvidia-smi does: 0000:01:00.0."),
    "compute_capability": _Key(_pattern(r"\d{1,2}\.\d", _capability), "Write it with a point, such as 8.6."),
    "compute_mode": _Key(_pattern("|".join(ComputeMode), ComputeMode), f"One of {', '.join(ComputeMode)}."),
    "bandwidth_gb_s": _Key(
        _pattern(r"\d{1,6}(\.\d{1,3})?", lambda text: round(float(text) * 10**9) or None),
        "A number of GB/s above zero, such as 936.",
        "bandwidth_bytes_per_s",
    ),
    "utilisation_percent": _Key(_pattern(r"[0-9]{1,3}", _percent), "A whole number from 0 to 100."),
    "temperature_c": _Key(_pattern(r"-?[0-9]{1,3}", int), "A whole number of degrees Celsius, such as 61."),
    "power_w": _Key(_pattern(r"[0-9]{1,5}(\.[0-9]{1,3})?", float), "A number of watts, such as 214.5."),
}
