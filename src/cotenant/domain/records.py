"""What is stored from one run of the daemon to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from cotenant.domain.devices import DeviceId
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.keys import KeyUse
from cotenant.domain.models import Parts

if TYPE_CHECKING:
    from cotenant.domain.decisions import Decision


class ModelOnEngine(NamedTuple):
    """What memory is learned by: another kind of engine holds other amounts for the same model."""

    model: str
    engine: EngineKind


class Warmth(StrEnum):
    """Whether a model's file was in the page cache when its load began."""

    COLD = "cold"
    WARM = "warm"


@dataclass(frozen=True, slots=True)
class FootprintRecord:
    """What one load of a model took on one device; `at` is Unix seconds. Unknown is None.

    `measured_bytes` is the increase of the used memory that the driver reports. The fingerprints identify
    the file and the recipe among others of the same name; `engine` is the engine's form and version.
    """

    at: float
    model: str
    file_fingerprint: str
    recipe_fingerprint: str
    device_id: DeviceId
    device_name: str
    predicted: Parts
    engine: str | None = None
    reported: Parts | None = None
    measured_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """How long a load took, from the start of the engine until it answered; `at` is Unix seconds."""

    at: float
    model: str
    seconds: float
    bytes: int
    warmth: Warmth


@dataclass(frozen=True, slots=True)
class LoadTimes:
    """Seconds that a model's load is expected to take, by what the page cache holds. Unknown is None."""

    cold_s: float | None = None
    warm_s: float | None = None

    @property
    def expected_s(self) -> float | None:
        """The load time to plan with: a cold one if it is known."""
        return self.warm_s if self.cold_s is None else self.cold_s


@dataclass(frozen=True, slots=True)
class PastRuns:
    """What loads of earlier runs teach.

    `overheads` are what a process takes beyond its engine's report, by kind of engine and device name;
    `seen_bytes` what each model last held in all, and `errors` how far off its predictions were, as a
    fraction.
    """

    overheads: Mapping[tuple[EngineKind, str], int] = field(default_factory=dict)
    seen_bytes: Mapping[ModelOnEngine, int] = field(default_factory=dict)
    errors: Mapping[ModelOnEngine, float] = field(default_factory=dict)
    load_times: Mapping[str, LoadTimes] = field(default_factory=dict)

    def load_s(self, model: str) -> float | None:
        """Return how long the next load of a model is expected to take; None if unknown."""
        return self.load_times.get(model, LoadTimes()).expected_s


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision and the Unix second at which it was made; its own `at` is valid within its run only."""

    at: float
    decision: Decision


def day_of(unix_s: float) -> str:
    """Return the day of an instant in UTC, as 2026-11-29."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class KeyUseRecord:
    """What the requests of a key used that ended within a while of a `day`, such as 2026-11-29, in UTC."""

    day: str
    key: str
    use: KeyUse


Record = FootprintRecord | LoadRecord | DecisionRecord | KeyUseRecord
