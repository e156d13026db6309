"""Which engine GPU memory belongs to, if a Reading alone does not show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import ResidencyId


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """GPU memory that belongs to our engines but not to a process of a residency, in bytes.

    `asleep` are the process groups of sleeping engines: their memory can be reclaimed at any time, so it is
    not foreign. `ollama` is what an Ollama daemon holds for each residency. `ollama_foreign_bytes` is what
    Ollama daemons hold for other clients, on devices whose Reading does not show it.
    """

    asleep: frozenset[int] = frozenset()
    ollama: Mapping[ResidencyId, Mapping[DeviceId, int]] = field(default_factory=dict)
    ollama_foreign_bytes: Mapping[DeviceId, int] = field(default_factory=dict)


NO_USAGE = EngineUsage()
