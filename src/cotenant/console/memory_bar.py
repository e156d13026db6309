"""Bars of a device's memory and of a model's layers, and the colours of models in them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from zlib import crc32

from cotenant.domain.units import MIB, format_bytes

WIDTH: Final = 1000
"""The width of a whole bar, in the units of its drawing."""
_MIN_OTHER_BYTES: Final = 32 * MIB
PART_NAMES: Final = {"weights": "weights", "kv": "KV cache", "compute": "compute", "overhead": "overhead"}
"""The parts of a footprint, in the order of bars, and their names on pages."""
COLOURS: Final = 10


class Palette:
    """Assigns a colour to each model while it is loaded; colours differ as long as there are enough."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, names: Collection[str]) -> Mapping[str, int]:
        """Return a colour from 0 to 9 for each of these loaded models, the same on all pages."""
        self._given = {name: colour for name, colour in self._given.items() if name in names}
        for name in sorted({*names} - self._given.keys()):
            wanted, taken = crc32(name.encode("utf-8", "replace")), [*self._given.values()]
            turns = [(wanted + step) % COLOURS for step in range(COLOURS)]
            self._given[name] = min(turns, key=taken.count)
        return dict(self._given)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar: `kind` is model, claim (being loaded or unloaded), service, foreign, free or stranded.

    `colour` is that of a model, None for others; `note` says how the bytes are known, if that matters. `x`
    and `width` are set by `layout`.
    """

    kind: str
    label: str
    bytes: int
    colour: int | None = None
    note: str = ""
    x: int = 0
    width: int = 0


def layout(parts: Iterable[Segment], total: int, min_width: int = 0) -> list[Segment]:
    """Place parts next to each other on a bar of `total` bytes; empty ones are left out."""
    placed, x, used = [], 0, 0
    for part in parts:
        if part.bytes:
            used += part.bytes
            end = min(WIDTH, max(x + min_width, round(used / (total or 1) * WIDTH)))
            placed.append(replace(part, x=x, width=max(0, end - x)))
            x = end
    return placed


def layer_run(label: str, slot: int | None, first: int, last: int, count: int) -> dict[str, Any]:
    """Return the layers from `first` to `last`, of `count` layers, as a part of a bar."""
    x = round(first / count * WIDTH)
    width = round((last + 1) / count * WIDTH) - x
    return {"label": label, "slot": slot, "first": first, "last": last, "x": x, "width": width}


def segments(
    device: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    services: tuple[int, Sequence[Mapping[str, Any]]] | None,
    colours: Mapping[str, int],
    stranded: int = 0,
) -> list[Segment]:
    """Split a device's memory, of which `stranded` bytes are free; empty if its size is unknown.

    `services` are the bytes that services cannot use, and those pinned to it, with `name` and `vram_mb`. What
    is in use beyond these bytes is the services', by their descriptions; the rest is other processes', as the
    driver lists them.
    """
    total, free_bytes, foreign = device["total_bytes"], device["free_bytes"], device.get("foreign_bytes") or 0
    if not total:
        return []
    parts = []
    for model in models:
        for engine in (model, *(model.get("others") or ())):
            count = (engine.get("bytes_by_device") or {}).get(device["uuid"], 0)
            serves = engine is model or engine["role"] == "copy"
            passing = not serves or engine["state"] in ("loading", "unloading", "reclaiming")
            kind, note = ("claim", str(engine["state"])) if passing else ("model", "")
            parts.append(Segment(kind, model["name"], count, colours.get(model["name"], 0), note))
    occupied, pinned = services or (total, ())
    used_bytes = foreign if free_bytes is None else total - free_bytes
    own = max(0, min(used_bytes - sum(part.bytes for part in parts), used_bytes - occupied))
    foreign = max(0, foreign - own)
    for service in pinned:
        count = min(own, (service["vram_mb"] or 0) * MIB)
        parts.append(Segment("service", service["name"], count, note="service, as described"))
        own -= count
    if own >= _MIN_OTHER_BYTES:
        parts.append(Segment("service", "services", own, note="services, as assumed"))
    known = [process for process in device.get("processes") or () if process["used_bytes"]]
    for process in sorted(known, key=lambda each: -int(each["used_bytes"]))[:6]:
        count = min(foreign, process["used_bytes"])
        if count >= MIB:
            name = (process["name"] or "process").rsplit("/", 1)[-1]
            parts.append(Segment("foreign", name, count, note=f"process {process['pid']}"))
            foreign -= count
    if foreign >= MIB:
        parts.append(Segment("foreign", "other processes", foreign))
    used = sum(part.bytes for part in parts)
    if free_bytes is not None and total - free_bytes - used >= _MIN_OTHER_BYTES:
        # Memory of the driver, of our engines above their plan, or that a GPU description states as used.
        parts.append(Segment("foreign", "other use", total - free_bytes - used))
        used = total - free_bytes
    note = "" if device.get("left_out") else f"{format_bytes(device['plannable_bytes'])} of it for models"
    free = max(0, total - used)
    stranded = min(stranded, free)
    parts.append(Segment("free", "free", free - stranded, note="" if stranded else note))
    parts.append(Segment("stranded", "free, of no use", stranded, note="no model that is served fits there"))
    return layout(parts, max(total, used), min_width=4)
