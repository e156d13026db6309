"""What is stored from one run of the daemon to the next."""

from dataclasses import dataclass
from enum import StrEnum

from cotenant.domain.decisions import Decision
from cotenant.domain.devices import DeviceId
from cotenant.domain.models import Parts


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
class DecisionRecord:
    """A decision and the Unix second at which it was made; its own `at` is valid within its run only."""

    at: float
    decision: Decision


Record = FootprintRecord | LoadRecord | DecisionRecord
