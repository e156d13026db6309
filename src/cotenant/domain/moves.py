"""What a move of a loaded model does, before it is made."""

from dataclasses import dataclass
from enum import StrEnum


class MoveMethod(StrEnum):
    """How a model leaves its devices."""

    LIVE = "live"
    """It loads elsewhere while it is served where it is: it is served all the time."""
    RELOAD = "reload"
    """It is unloaded and then loaded elsewhere, since both do not fit at once: requests wait meanwhile."""
    UNLOAD = "unload"
    """It is unloaded once it is idle; its next request loads it where there is room then."""
    STAY = "stay"
    """It stays."""


class MoveOutcome(StrEnum):
    """How a move has ended."""

    LIVE = "live"
    RELOAD = "reload"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """What models hold on a device, in bytes: now, at most during a move, and after it."""

    uuid: str
    index: int | None
    name: str
    total_bytes: int | None
    now_bytes: int
    during_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class MovePlan:
    """A move that could be made now: `text` says it in a sentence, or why it is not possible.

    `source` and `target` name devices; a model that stays has no target. `expected_s` is about how long it
    takes until the model is served there, without the end of requests that are under way.
    """

    model: str
    method: MoveMethod
    text: str
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    devices: tuple[DeviceChange, ...] = ()
    expected_s: float | None = None
