"""A simulated engine: a process that serves one model on its devices."""

from dataclasses import dataclass, field

from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import LeaseId, ResidencyId
from cotenant.simulation.models import Client, SimulatedModel


@dataclass(slots=True, eq=False)
class SimulatedEngine:
    """A process that runs a model until it is `gone`."""

    residency: ResidencyId
    model: SimulatedModel
    wanted: dict[DeviceId, int]
    loading: bool = True
    asked_to_end: bool = False
    hung: bool = False
    gone: bool = False
    ready_at: float | None = None
    leases: dict[LeaseId, Client] = field(default_factory=dict)
    busy_since: float = 0.0
    busy_s: float = 0.0
