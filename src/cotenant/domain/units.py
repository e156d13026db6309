"""Bytes and durations: parse and render."""

import re
from typing import Final

from cotenant.domain.errors import BadQuantity

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3

_BYTE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kib": KIB,
    "k": KIB,
    "kb": 10**3,
    "mib": MIB,
    "m": MIB,
    "mb": 10**6,
    "gib": GIB,
    "g": GIB,
    "gb": 10**9,
    "tib": 1024**4,
    "t": 1024**4,
    "tb": 10**12,
}
_SECOND_UNITS: Final = {
    "": 1.0,
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_NUMBER_WITH_UNIT: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµμ]*)")
_DURATION: Final = re.compile(r"\d+(?:\.\d*)?|\.\d+|(?:(?:\d+(?:\.\d*)?|\.\d+)\s*[A-Za-zµμ]+\s*)+")
_MAX_BYTES: Final = 1 << 60


def parse_bytes(text: str) -> int:
    """Read a byte count such as `24GiB`, `512 MiB`, `8GB` or `1048576`.

    `K`, `M`, `G`, `T` alone are binary, as memory is sold; `KB`, `MB`, `GB` are decimal, as files are.
    Raises BadQuantity.
    """
    match = _NUMBER_WITH_UNIT.fullmatch(text.strip())
    unit = _BYTE_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise BadQuantity(
            f"{text!r} is not a size", hint="Write a number and a unit, such as 24GiB or 800MiB."
        )
    value = float(match[1]) * unit
    if value > _MAX_BYTES:
        raise BadQuantity(f"{text!r} is more memory than any machine has", hint="Check the unit.")
    return round(value)


def format_bytes(count: int | None) -> str:
    """Render bytes for people: `39.0 GiB`, `512 MiB`, `900 B`; `unknown` for None."""
    if count is None:
        return "unknown"
    if abs(count) >= 1000 * MIB:
        return f"{count / GIB:,.1f} GiB"
    if abs(count) >= MIB:
        return f"{count / MIB:,.0f} MiB"
    if abs(count) >= KIB:
        return f"{count / KIB:,.0f} KiB"
    return f"{count} B"


def printable(text: str) -> str:
    """Return a text of others, with U+FFFD for characters that may command a terminal."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun: `1 file`, `2 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_mib(count: int | None) -> str:
    """Render bytes as whole MiB with thousands separators, without the unit: `23,287`; `?` for None."""
    return "?" if count is None else f"{round(count / MIB):,}"


def parse_duration(text: str) -> float:
    """Read seconds from `300`, `250ms`, `30s`, `5m`, `2h`, `1d` or `1h30m`, or as Go writes them.

    Raises BadQuantity.
    """
    pieces = _NUMBER_WITH_UNIT.findall(text) if _DURATION.fullmatch(text.strip()) else []
    if not pieces or any(unit.lower() not in _SECOND_UNITS for _, unit in pieces):
        raise BadQuantity(
            f"{text!r} is not a duration", hint="Write seconds or a unit, such as 30s, 5m or 1h30m."
        )
    return sum(float(number) * _SECOND_UNITS[unit.lower()] for number, unit in pieces)


def format_duration(seconds: float) -> str:
    """Render seconds for people: `340 ms`, `4.1 s`, `5 m 12 s`, `2 h 3 m`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m"
