"""Whose memory a device's is, as the segments of a bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_MIB: Final = 1 << 20
_IN_FLIGHT: Final = frozenset({"loading", "unloading", "reclaiming"})
WIDTH: Final = 1000
"""How wide a whole bar is, in the units of its drawing."""
_THIN: Final = 4
_FEW: Final = 6
_WORTH_SHOWING: Final = 32 * _MIB


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar: `kind` is model, claim (on its way in or out), service, foreign or free.

    `colour` is a model's, None for others; `note` says how the bytes are known, where that matters.
    """

    kind: str
    label: str
    bytes: int
    x: int
    width: int
    colour: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Held:
    kind: str
    label: str
    bytes: int
    colour: int | None = None
    note: str = ""


def segments(
    device: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    services: Sequence[Mapping[str, Any]],
    colours: Mapping[str, int],
) -> list[Segment]:
    """Split a device's memory; empty where its size is not known.

    `services` are those pinned to it, with `name` and `vram_mb`. What others hold is shared among them first,
    as they were described, then among other processes, as the driver lists them.
    """
    total = device["total_bytes"]
    if not total:
        return []
    held = [*_ours(device, models, colours), *_others(device, services)]
    used = sum(each.bytes for each in held)
    if device["free_bytes"] is not None and total - device["free_bytes"] - used >= _WORTH_SHOWING:
        # The driver's own, ours beyond what was planned, or what a described card was said to hold.
        held.append(_Held("foreign", "other use", total - device["free_bytes"] - used))
        used += held[-1].bytes
    free = max(0, total - used)
    if free:
        plannable = device["plannable_bytes"]
        note = "" if device.get("left_out") else f"{plannable / (1 << 30):,.1f} GiB of it for models"
        held.append(_Held("free", "free", free, note=note))
    return _drawn(held, max(total, used))


def _ours(
    device: Mapping[str, Any], models: Sequence[Mapping[str, Any]], colours: Mapping[str, int]
) -> list[_Held]:
    held = []
    for model in models:
        count = (model.get("bytes_by_device") or {}).get(device["uuid"])
        if not count:
            continue
        moving = model["state"] in _IN_FLIGHT
        note = str(model["state"]) if moving else ""
        kind = "claim" if moving else "model"
        held.append(_Held(kind, model["name"], count, colours.get(model["name"], 0), note))
    return held


def _others(device: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> list[_Held]:
    left = device.get("foreign_bytes") or 0
    held = []
    for service in services:
        count = min(left, (service["vram_mb"] or 0) * _MIB)
        if count:
            held.append(_Held("service", service["name"], count, note="service, as described"))
            left -= count
    for process in _largest(device.get("processes") or ()):
        count = min(left, process["used_bytes"])
        if count >= _MIB:
            name = (process["name"] or "process").rsplit("/", 1)[-1]
            held.append(_Held("foreign", name, count, note=f"process {process['pid']}"))
            left -= count
    if left >= _MIB:
        held.append(_Held("foreign", "other processes", left))
    return held


def _largest(processes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    told = [process for process in processes if process["used_bytes"]]
    return sorted(told, key=lambda process: -int(process["used_bytes"]))[:_FEW]


def _drawn(held: Sequence[_Held], total: int) -> list[Segment]:
    """Lay the parts side by side, none so thin that it cannot be seen."""
    drawn, at, used = [], 0, 0
    for each in held:
        used += each.bytes
        end = max(at + _THIN, round(used / total * WIDTH))
        end = min(end, WIDTH)
        drawn.append(Segment(each.kind, each.label, each.bytes, at, max(0, end - at), each.colour, each.note))
        at = end
    return drawn
