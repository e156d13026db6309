"""One described GPU, and the short form in which it is written."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cotenant.domain.devices import ComputeMode, GpuProcess
from cotenant.domain.errors import BadDeviceSpec, BadQuantity
from cotenant.domain.units import GIB, MIB, parse_bytes
from cotenant.hardware.gpus.known_cards import find_card, nearest_cards

MAX_DEVICES = 64
EXAMPLE = (
    "Write sizes (24GiB,24GiB), known names (2xRTX 3090), name:total MiB:used MiB, or a YAML file's path."
)

T = TypeVar("T")
_COUNTED = re.compile(r"(\d{1,4})\s*[x×]\s*(.+)", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MAX_NAME = 96


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


def read_entries(
    entries: Iterable[tuple[str, T]], read: Callable[[T], Sequence[DescribedGpu]]
) -> tuple[tuple[str, DescribedGpu], ...]:
    """Read entries, each given with its place; return that place with each GPU. Raises BadDeviceSpec."""
    found: list[tuple[str, DescribedGpu]] = []
    for where, entry in entries:
        try:
            found += [(where, gpu) for gpu in read(entry)]
        except BadDeviceSpec as error:
            raise BadDeviceSpec(f"{where}: {error.message}", hint=error.hint) from None
    return tuple(found)


def parse_entry(text: str) -> list[DescribedGpu]:
    """Read `24GiB`, `24GiB:2GiB`, `RTX 3090` or `name:total[:used]`, each after an optional `4x`.

    After a colon a number without a unit is MiB, as nvidia-smi shows them. Raises BadDeviceSpec.
    """
    counted = _COUNTED.fullmatch(text.strip())
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
