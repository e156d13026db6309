"""How an advisor does, as operators are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class AdvisorMode(StrEnum):
    """What becomes of an advisor's advice: with `shadow` it is only told."""

    OFF = "off"
    SHADOW = "shadow"
    ON = "on"


class Asked(StrEnum):
    """How a question to the advisor ended; skipped where it was not put at all."""

    ANSWERED = "answered"
    INVALID = "invalid"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class AdvisorStatus:
    """Its mode, its questions by how they ended, and how many decisions its advice changed.

    With `broken` it is left alone for a while after failures in a row, the last of which is `last_failure`.
    """

    mode: str
    asked: Mapping[Asked, int] = field(default_factory=dict)
    decisions: int = 0
    broken: bool = False
    last_failure: str | None = None
