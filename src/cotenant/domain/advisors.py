"""Advice on which models to keep or load, and the state of the advisor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MIN_KEEP_ALIVE_FACTOR: Final = 0.25
MAX_KEEP_ALIVE_FACTOR: Final = 4.0
MAX_SOFT_PINS: Final = 4
MAX_SOFT_PIN_S: Final = 600.0
MAX_PREFETCHES: Final = 2


class AdvisorMode(StrEnum):
    """Whether advice is followed; with `shadow` it is only logged."""

    OFF = "off"
    SHADOW = "shadow"
    ON = "on"


class QuestionOutcome(StrEnum):
    """How a question to the advisor ended; skipped if it was not sent."""

    ANSWERED = "answered"
    INVALID = "invalid"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class AdvisorStatus:
    """Its mode, its questions by outcome, and how many decisions its advice changed.

    While `broken` it is not asked, after failures in a row; `last_failure` is the last of them.
    """

    mode: str
    asked: Mapping[QuestionOutcome, int] = field(default_factory=dict)
    decisions: int = 0
    broken: bool = False
    last_failure: str | None = None


@dataclass(frozen=True, slots=True)
class Hint:
    """Advice for one model; it is dropped if the model was not loaded exactly `loads` times.

    The factor multiplies its keep-alive. For `soft_pin_s` seconds others are evicted before it. `prefetch`
    loads it ahead of any request.
    """

    loads: int
    keep_alive_factor: float = 1.0
    soft_pin_s: float = 0.0
    prefetch: bool = False


@dataclass(frozen=True, slots=True)
class Advice:
    """Hints by model, based on the state at the instant `asked_at`. With `shadow` they are only logged."""

    asked_at: float
    hints: Mapping[str, Hint] = field(default_factory=dict)
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class AdviceStatus:
    """The last search for better settings: `idle` if there was none, `running`, `done` or `failed`.

    Instants are Unix seconds. `message` says why it failed, or why none can begin. `advice` is the last
    result, as `cotenant advise --json` prints it.
    """

    state: str = "idle"
    started_at: float | None = None
    finished_at: float | None = None
    message: str = ""
    advice: Mapping[str, object] | None = None
