"""Room that is being made for a model."""

from dataclasses import dataclass

from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyId


@dataclass(frozen=True, slots=True)
class Reload:
    """A move without a successor: a model that was on devices of this name goes to these."""

    devices: frozenset[DeviceId]
    moved_from: str


@dataclass(slots=True)
class Reservation:
    """Room being made for a model: its victims go first. `drains` says that busy ones are among them.

    With `reload` it moves: the only victim is its own residency.
    """

    model: str
    placement: Placement
    bytes_by_device: dict[DeviceId, int]
    victims: set[ResidencyId]
    at: float
    drains: bool = False
    reload: Reload | None = None
