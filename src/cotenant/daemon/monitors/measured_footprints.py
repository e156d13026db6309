"""What models are seen to take whose bytes nobody can compute, for their next loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.domain.residencies import ResidencyState

_MARGIN: Final = 1.05
_CHANGED: Final = 1.02


class MeasuredFootprints:
    """Watches Readings for what commands take, and has the next load planned by it.

    What a model took in past runs is where it begins. A stated `memory:` is never overruled.
    """

    def __init__(self, view: FleetView, served: ActiveConfiguration, known: Mapping[str, int]) -> None:
        self._view = view
        self._served = served
        self._seen = dict(known)

    def measured(self) -> None:
        """Take in what the last Readings say of each command that is loaded."""
        for residency, _ in self._view.loaded():
            entry = self._view.entry(residency.model)
            if entry is None or not entry.recipe.engine.traits.learns_from_readings:
                continue
            held = residency.measured_bytes
            if residency.state is not ResidencyState.READY or not held:
                continue
            if held > _CHANGED * self._seen.get(entry.name, 0):
                self._seen[entry.name] = held
                self._served.learn({entry.name: with_margin(held)})


def with_margin(seen_bytes: int) -> int:
    """Return what to plan for a model that was seen to hold so much."""
    return int(_MARGIN * seen_bytes)
