"""What the checks find."""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial


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
    NODES = "Several machines"
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


ok = partial(Observation, Level.OK)
"""Report that there is no problem."""
warning = partial(Observation, Level.WARNING)
"""Report that models run, but slower than they could, or with a risk of failure."""
problem = partial(Observation, Level.PROBLEM)
"""Report that something which was requested cannot work."""
unknown = partial(Observation, Level.UNKNOWN)
"""Report that it could not be checked."""
