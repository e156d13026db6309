"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is. `UNKNOWN` could not be looked at; it counts for nothing."""

    PROBLEM = "problem"
    WARNING = "warning"
    UNKNOWN = "unknown"
    OK = "ok"


class Area(StrEnum):
    """What a finding is about."""

    DRIVER = "GPU driver"
    CARDS = "Cards"
    SHARING = "Sharing cards"
    ENGINES = "Engines"
    CONTAINERS = "Containers"
    MACHINE = "Machine"
    FILES = "Files and ports"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen, why it matters, and the command or the step that mends it; the last two may be empty."""

    area: Area
    level: Level
    seen: str
    matters: str = ""
    mend: str = ""


def ok(area: Area, seen: str) -> Finding:
    """All is well."""
    return Finding(area, Level.OK, seen)


def warning(area: Area, seen: str, matters: str, mend: str = "") -> Finding:
    """Models run, but not as well as they could, or not for ever."""
    return Finding(area, Level.WARNING, seen, matters, mend)


def problem(area: Area, seen: str, matters: str, mend: str = "") -> Finding:
    """Something that was asked for cannot work."""
    return Finding(area, Level.PROBLEM, seen, matters, mend)


def unknown(area: Area, seen: str, matters: str = "", mend: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(area, Level.UNKNOWN, seen, matters, mend)
