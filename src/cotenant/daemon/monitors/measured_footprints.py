"""Learns the memory of models whose footprint cannot be computed, for their next loads."""

from collections.abc import Mapping
from typing import Final

from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.past_runs import with_margin
from cotenant.domain.devices import Inventory
from cotenant.domain.records import ModelOnEngine
from cotenant.domain.residencies import ResidencyState

_CHANGED: Final = 1.02


class MeasuredFootprints:
    """Takes from Readings what such models hold, so that their next load is planned by it.

    It starts with what models held in past runs. A stated `memory:` always wins.
    """

    def __init__(
        self, view: FleetView, served: ActiveConfiguration, known: Mapping[ModelOnEngine, int]
    ) -> None:
        self._view = view
        self._served = served
        self._seen = dict(known)

    def measured(self, inventory: Inventory | None) -> None:
        """Update what is known of each loaded model by the last Readings."""
        for residency, _ in self._view.loaded():
            entry = self._view.entry(residency.model)
            if entry is None or not entry.recipe.engine.traits.learns_from_readings:
                continue
            held = residency.measured_bytes
            if residency.state is not ResidencyState.READY or not held:
                continue
            if held > _CHANGED * self._seen.get(entry.on_engine, 0):
                self._seen[entry.on_engine] = held
                self._served.learn({entry.on_engine: with_margin(held)})
