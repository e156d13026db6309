"""One described GPU, the short form in which it is written, and the YAML file."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import yaml

from cotenant.domain.devices import ComputeMode, GpuProcess, normalise_bus_id
from cotenant.domain.errors import BadDeviceSpec, BadQuantity
from cotenant.domain.units import GIB, MIB, parse_bytes
from cotenant.hardware.gpus.known_cards import find_card, nearest_cards

MAX_DEVICES = 64
FILE_SUFFIXES = (".yaml", ".yml", ".json")
EXAMPLE = (
    "Write sizes (24GiB,24GiB), known names (2xRTX 3090), name:total MiB:used MiB, or a YAML file's path."
)

T = TypeVar("T")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MAX_NAME = 96
_FILE_EXAMPLE = "A file lists GPUs: `- {name: RTX A5500, total_mib: 24564, used_mib: 19304}`."
_MAX_FILE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class DescribedGpu:
    """A GPU as described.

    `uuid` is None if it is to be derived, `processes` if they are unknown. Raises BadDeviceSpec for values
    that no GPU has.
    """

    name: str
    total_bytes: int
    used_bytes: int = 0
    uuid: str | None = None
    pci_bus_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    compute_mode: ComputeMode = ComputeMode.DEFAULT
    bandwidth_bytes_per_s: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > _MAX_NAME or not self.name.isprintable():
            raise BadDeviceSpec(f"a name has 1 to {_MAX_NAME} printable characters", hint=EXAMPLE)
        if self.total_bytes < MIB:
            raise BadDeviceSpec("its memory is under 1 MiB", hint=EXAMPLE)
        if self.used_bytes > self.total_bytes:
            used, total = self.used_bytes // MIB, self.total_bytes // MIB
            raise BadDeviceSpec(f"{used:,} MiB used are more than {total:,} MiB in all", hint=EXAMPLE)


_MOST_SHOWN: Final = 10


def read_entries(
    entries: Iterable[tuple[str, T]], read: Callable[[T], Sequence[DescribedGpu]]
) -> tuple[tuple[str, DescribedGpu], ...]:
    """Read entries, each given with its place; return that place with each GPU. Raises BadDeviceSpec."""
    found: list[tuple[str, DescribedGpu]] = []
    wrong: list[BadDeviceSpec] = []
    for where, entry in entries:
        try:
            found += [(where, gpu) for gpu in read(entry)]
        except BadDeviceSpec as error:
            wrong.append(BadDeviceSpec(f"{where}: {error.message}", hint=error.hint))
    if wrong:
        raise BadDeviceSpec("; ".join(error.message for error in wrong[:_MOST_SHOWN]), hint=wrong[0].hint)
    return tuple(found)


def parse_entry(text: str) -> list[DescribedGpu]:
    """Read `24GiB`, `24GiB:2GiB`, `RTX 3090` or `name:total[:used]`, each after an optional `4x`.

    After a colon a number without a unit is MiB, as nvidia-smi shows them. Raises BadDeviceSpec.
    """
    counted = re.fullmatch(r"(\d{1,4})\s*[x×]\s*(.+)", text.strip(), re.DOTALL)
    count = int(counted[1]) if counted else 1
    if not 1 <= count <= MAX_DEVICES:
        raise BadDeviceSpec(f"{count} GPUs are not between 1 and {MAX_DEVICES}", hint=EXAMPLE)
    first, *rest = (field.strip() for field in (counted[2] if counted else text).split(":"))
    if not first:
        raise BadDeviceSpec("it has no name" if rest else "it is empty", hint=EXAMPLE)
    size = _size_with_unit(first)
    if size is None and first[0].isdigit() and not rest:
        size = read_size(first)
    if size is not None:
        rest = [first, *rest]
    if len(rest) > 2:
        raise BadDeviceSpec("it has more parts than name, total and used", hint=EXAMPLE)
    total, used, *_ = [*(read_size(field, bare_mib=True) for field in rest), None, None]
    return [complete(None if size is not None else first, total, used or 0)] * count


def complete(name: str | None, total_bytes: int | None, used_bytes: int = 0) -> DescribedGpu:
    """Add what is known of a named card, or name a card by its size. Raises BadDeviceSpec."""
    card = find_card(name) if name else None
    if total_bytes is None:
        if card is None:
            near = nearest_cards(name or "")
            raise BadDeviceSpec(
                f"{name or ''!r} is neither a size nor a GPU whose memory is known here",
                hint=(f"Did you mean {' or '.join(near)}? " if near else "")
                + f"Give its memory in MiB after a colon: {name or ''}:24576.",
            )
        name, total_bytes = card.name, card.total_bytes
    size, unit = (GIB, "GiB") if total_bytes >= GIB else (MIB, "MiB")
    return DescribedGpu(
        f"GPU {round(total_bytes / size, 1):g} {unit}" if name is None else name,
        total_bytes,
        used_bytes,
        compute_capability=card.compute_capability if card else None,
        bandwidth_bytes_per_s=card.bandwidth_bytes_per_s if card else None,
    )


def read_size(text: str, *, bare_mib: bool = False) -> int:
    """Read a size; a number without a unit is MiB if `bare_mib`, else refused. Raises BadDeviceSpec."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        if not bare_mib:
            raise BadDeviceSpec(f"{text!r} has no unit", hint=f"Write {text}GiB or {text}MiB.")
        text += "MiB"
    try:
        return parse_bytes(text)
    except BadQuantity as error:
        raise BadDeviceSpec(error.message, hint=EXAMPLE) from None


def _size_with_unit(text: str) -> int | None:
    if _NUMBER.fullmatch(text):
        return None
    try:
        return parse_bytes(text)
    except BadQuantity:
        return None


def read_file(path: Path) -> tuple[tuple[tuple[str, DescribedGpu], ...], bool]:
    """Read a file of GPUs: a list, or `gpus:` and perhaps `live: true`. Raises BadDeviceSpec.

    Return each with its place in the file (`entry 2`), and whether the file is live: it changes, as a
    driver's answers do, and is read again for each inventory.
    """
    (document, lines), live = _load(path), None
    if isinstance(document, dict):
        unknown = sorted(str(key) for key in document if key not in ("gpus", "live"))
        if unknown:
            what = f"{path} has a key {_shown(unknown[0])} other than gpus or live"
            raise BadDeviceSpec(what, hint=_FILE_EXAMPLE)
        try:
            hint = "true if the file is to be read again each time, else false."
            live = _optional(document, "live", {"true": True, "false": False}.get, hint)
        except BadDeviceSpec as error:
            raise BadDeviceSpec(f"{path}: {error.message}", hint=error.hint) from None
        document = document.get("gpus")
    if not isinstance(document, list) or not document:
        raise BadDeviceSpec(f"{path} holds no list of GPUs", hint=_FILE_EXAMPLE)
    entries = (
        (f"{path}, line {line}, entry {number}", entry)
        for number, (entry, line) in enumerate(
            zip(document, (*lines, *("?" for _ in document)), strict=False), start=1
        )
    )
    return read_entries(
        entries, lambda entry: parse_entry(entry) if isinstance(entry, str) else [_gpu(entry)]
    ), bool(live)


def _load(path: Path) -> tuple[Any, list[int]]:
    """Return what the file holds, and the line of each entry of its list of GPUs."""
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadDeviceSpec(f"{path} cannot be read: {error.strerror}", hint=_FILE_EXAMPLE) from None
    except (ValueError, RuntimeError) as error:
        raise BadDeviceSpec(f"{str(path)!r} is no path: {error}", hint=_FILE_EXAMPLE) from None
    if len(content) > _MAX_FILE_BYTES:
        raise BadDeviceSpec(f"{path} is over 256 KiB, too large for a list of GPUs", hint=_FILE_EXAMPLE)
    try:
        # Only strings, lists and mappings: YAML would read the bus id 0000:01:00.0 as a number in base 60.
        root = yaml.compose(content, Loader=yaml.BaseLoader)
        listed = root
        if isinstance(root, yaml.MappingNode):
            listed = next((value for key, value in root.value if key.value == "gpus"), None)
        entries = listed.value if isinstance(listed, yaml.SequenceNode) else []
        lines = [entry.start_mark.line + 1 for entry in entries]
        return yaml.load(content, Loader=yaml.BaseLoader), lines  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise BadDeviceSpec(
            f"{path}, line {line}: {error.problem or 'not YAML'}", hint=_FILE_EXAMPLE
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise BadDeviceSpec(f"{path} is not a YAML text file", hint=_FILE_EXAMPLE) from None


def _gpu(entry: Any) -> DescribedGpu:
    _check_keys(entry, (*_SIZES, *_GPU_KEYS, "processes"))
    name, total = _optional(entry, "name", str), _size(entry, "total")
    if name is None and total is None:
        raise BadDeviceSpec("it has neither a name nor a total", hint=_FILE_EXAMPLE)
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
        raise BadDeviceSpec(f"{_shown(entry)} is not a mapping", hint=_FILE_EXAMPLE)
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
            raise BadDeviceSpec(f"unknown key {_shown(key)}", hint=hint)


def _optional(entry: dict[str, Any], key: str, read: Callable[[str], Any], hint: str = _FILE_EXAMPLE) -> Any:
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
        raise BadDeviceSpec(f"it has both {key} and {key}_mib", hint=_FILE_EXAMPLE)
    mib: int | None = _optional(entry, f"{key}_mib", lambda text: read_size(text, bare_mib=True))
    return _optional(entry, key, read_size) if mib is None else mib


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _pattern(pattern: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader of texts that match; it returns None for others."""
    return lambda text: read(text) if re.fullmatch(pattern, text) else None


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
    "compute_capability": _Key(
        _pattern(r"\d{1,2}\.\d", lambda text: tuple(map(int, text.split(".")))),
        "Write it with a point, such as 8.6.",
    ),
    "compute_mode": _Key(_pattern("|".join(ComputeMode), ComputeMode), f"One of {', '.join(ComputeMode)}."),
    "bandwidth_gb_s": _Key(
        _pattern(r"\d{1,6}(\.\d{1,3})?", lambda text: round(float(text) * 10**9) or None),
        "A number of GB/s above zero, such as 936.",
        "bandwidth_bytes_per_s",
    ),
    "utilisation_percent": _Key(_pattern(r"[0-9]{1,2}|0[0-9]{2}|100", int), "A whole number from 0 to 100."),
    "temperature_c": _Key(_pattern(r"-?[0-9]{1,3}", int), "A whole number of degrees Celsius, such as 61."),
    "power_w": _Key(_pattern(r"[0-9]{1,5}(\.[0-9]{1,3})?", float), "A number of watts, such as 214.5."),
}
