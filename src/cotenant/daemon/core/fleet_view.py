"""What the monitors may read of the scheduler and the engines."""

from collections.abc import Collection, Mapping, Sequence

from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.effects import Running
from cotenant.daemon.core.loop import Loop
from cotenant.domain.devices import HOST_ID, Device, DeviceId, DeviceKind, host_id
from cotenant.domain.nodes import FileState
from cotenant.domain.residencies import ResidencyId, ResidencyState, model_of
from cotenant.scheduling.queries.warm_ranking import rank, warm_candidates
from cotenant.scheduling.residency import Residency


class FleetView:
    """Queries that change nothing."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._state = loop.scheduler.state

    def entry(self, name: str) -> ModelEntry | None:
        """Return a model's entry, by its own name or that of a copy."""
        return self._loop.fleet.entries.get(model_of(name))

    def loaded(self) -> Sequence[tuple[Residency, Running]]:
        """Return the residencies that have an engine, each with it."""
        residencies = self._state.residencies
        return [
            (residencies[r], engine) for r, engine in self._loop.effects.running.items() if r in residencies
        ]

    def models_awaiting_room(self, node: str | None = None) -> Sequence[str]:
        """Name the models that others are being evicted for on a machine."""
        waiting = self._state.reservations.items()
        return tuple(model_of(name) for name, reserved in waiting if reserved.placement.node == node)

    def models_without_room(self) -> Sequence[str]:
        """Name the models that are requested while nothing is done about it: no load, no eviction."""
        if self._state.loading_devices():
            return ()
        now = self._loop.clock.now()
        return [
            model.spec.name
            for model in self._state.cold_and_wanted()
            if model.spec.name not in self._state.reservations
            and model.retry_at <= now
            and not model.is_extra
        ]

    def loading_models(self, node: str | None = None) -> Collection[str]:
        """Name the models that are being loaded on a machine."""
        loading = self._state.in_state(ResidencyState.LOADING)
        return {model_of(residency.model) for residency in loading if residency.node == node}

    def warm_ranking(
        self, budget_bytes: int, kept: Mapping[str, int], node: str | None = None
    ) -> Mapping[str, int]:
        """Return how many bytes to keep of which models' files on a machine, the best first (`rank`).

        They leave host RAM that models claim alone. Of another machine only files count that it has.
        """
        id_ = host_id(node)
        host = self._state.ledger.readings.get(id_) or self._state.ledger.hosts.get(id_)
        if host is not None and host.free_bytes is not None:
            budget_bytes = min(budget_bytes, self._state.ledger.available_bytes(host.device.id))
        entries = self._loop.fleet.entries
        sizes = {
            name: sum(file.size for file in entry.signature)
            for name, entry in entries.items()
            if node is None or self._has_files(name, node)
        }
        return rank(warm_candidates(self._state, sizes, self._loop.clock.now()), budget_bytes, kept)

    def file_state(self, name: str) -> FileState | None:
        """Return where the files of a copy of a model are on the machine that it is on; None if unknown."""
        model = self._state.models.get(name)
        residency = None if model is None or model.stays_as is None else model.stays_as
        if model is None or residency not in self._state.residencies:
            return None
        cost = model.whole.load_costs.get(self._state.residencies[residency].node or "")
        return None if cost is None else cost.state

    def _has_files(self, name: str, node: str) -> bool:
        model = self._state.models.get(name)
        cost = None if model is None else model.load_costs.get(node)
        return cost is not None and cost.state is not FileState.ABSENT

    def host_room(self) -> int | None:
        """Return what of host RAM is not claimed, in bytes, negative if too much is; None if unknown."""
        ledger = self._state.ledger
        host = ledger.readings.get(HOST_ID) or ledger.hosts.get(HOST_ID)
        if host is None or host.free_bytes is None:
            return None
        return ledger.available_bytes(host.device.id)

    def holds_models_in_ram(self) -> bool:
        """Whether models are placed in host RAM: it is the only device, or a GPU shares it."""
        readings = self._state.ledger.readings.values()
        return any(r.device.unified or r.device.kind is DeviceKind.HOST for r in readings)

    def is_reclaiming(self) -> bool:
        """Whether memory of an engine that has ended is not yet seen to be free."""
        return bool(self._state.in_state(ResidencyState.RECLAIMING))

    def devices(self) -> Sequence[Device]:
        """Return the devices of the last Readings, in planned order."""
        return [reading.device for reading in self._state.ledger.readings.values()]

    def measured_bytes(self, residency: ResidencyId, device: DeviceId) -> int | None:
        """Return what a residency holds on a device by its last Reading."""
        reading = self._state.ledger.readings.get(device)
        held = reading.engine_bytes if reading else None
        return None if held is None else held.get(residency)

    async def memory_changed(self) -> None:
        """Return when the next engine becomes ready or ends, or memory is freed otherwise."""
        await self._loop.memory_changed()
