"""What the checks find."""

from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    """The severity of a finding. `UNKNOWN` could not be checked; it does not count as a problem."""

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
class Observation:
    """What a check saw, why it matters, and the command or step that fixes it; the last two may be empty."""

    level: Level
    seen: str
    matters: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Finding(Observation):
    """An observation with the area of its check."""

    area: Area = field(kw_only=True)


def ok(seen: str) -> Observation:
    """Report that there is no problem."""
    return Observation(Level.OK, seen)


def warning(seen: str, matters: str, fix: str = "") -> Observation:
    """Report that models run, but slower than they could, or with a risk of failure."""
    return Observation(Level.WARNING, seen, matters, fix)


def problem(seen: str, matters: str, fix: str = "") -> Observation:
    """Report that something which was requested cannot work."""
    return Observation(Level.PROBLEM, seen, matters, fix)


def unknown(seen: str, matters: str = "", fix: str = "") -> Observation:
    """Report that it could not be checked."""
    return Observation(Level.UNKNOWN, seen, matters, fix)
