"""What operators see of the models and devices, and what they may do with them."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cotenant.daemon.core.fragmentation import FragmentationMeter
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.status import device_statuses, model_status
from cotenant.domain.decisions import Decision, DeviceStatus, Histogram, ModelStatus, SlotStatus, WarmStatus
from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import CannotMove, DoesNotFit, EngineLoadFailed
from cotenant.domain.fragmentation import Defragmentation, DefragmentMode, Fragmentation
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyState, model_of
from cotenant.interfaces import RemoteLog
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.host_memory import placement_bytes
from cotenant.scheduling import events
from cotenant.scheduling.state import State


@dataclass(frozen=True, slots=True)
class FleetOperator:
    """The Operator over a Loop. Names may be aliases.

    `reload` reads the configuration again and says what changed. It raises BadSetting and then changes
    nothing.
    """

    _loop: Loop
    reload: Callable[[], Coroutine[Any, Any, Sequence[str]]]
    _meter: FragmentationMeter = field(default_factory=FragmentationMeter)

    @property
    def _state(self) -> State:
        return self._loop.scheduler.state

    def statuses(self) -> Sequence[ModelStatus]:
        """Return the status of every model."""
        now, effects, warm = self._loop.clock.now(), self._loop.effects, self._loop.warm
        return [
            model_status(
                self._state,
                entry,
                model,
                now,
                running,
                None if warm is None else warm.by_model.get(name, 0),
                effects.fetches(name),
            )
            for name, entry in self._loop.fleet.entries.items()
            if (model := self._state.models.get(name)) is not None
            for running in [effects.running.get(model.residency) if model.residency else None]
        ]

    def bytes_if_loaded(self, name: str) -> int | None:
        """Return what a model would take of the memory that is free; None if it does not fit there."""
        model, budgets = self._state.models[name], self._state.ledger.budgets()
        found = choose_devices(model.fit, budgets, (), together=model.spec.together)
        return sum(placement_bytes(found).values()) if isinstance(found, Placement) else None

    def devices(self) -> Sequence[DeviceStatus]:
        """Return how the memory of every device is used."""
        return device_statuses(self._state, self._loop.readings, self._loop.effects.pids, self._loop.silent_s)

    async def fragmentation(self) -> Fragmentation:
        """Return how much of the free memory no model can use."""
        return await self._meter.measure(self._state, self._loop.clock.now())

    async def defragmentation(self, name: str | None = None, *, unasked: bool = False) -> Defragmentation:
        """Return the moves that let a model fit, by default the one that gains most. Raises UnknownModel."""
        resolved = None if name is None else self._loop.fleet.resolve(name)
        if (unasked or name is None) and self._state.settings.defragment is DefragmentMode.OFF:
            return Defragmentation(
                None, True, text="no moves are proposed, since `scheduling.defragment` is off"
            )
        return await self._meter.propose(self._state, self._loop.clock.now(), resolved)

    async def defragment(self, name: str | None = None) -> Defragmentation:
        """Make these moves, one after another, and return them. Raises UnknownModel or CannotMove."""
        found = await self.defragmentation(name)
        for move in found.moves:
            target = DeviceId(move.to)
            self._loop.post(events.MoveAsked(self._loop.clock.now(), move.model, frozenset({target})))
            await self._loop.until(partial(self._move_has_ended, move.model))
            model = self._state.models.get(move.model)
            residency = self._state.residency_of(model) if model is not None else None
            if residency is None or residency.devices != (target,):
                told = [each.text for each in self._loop.feed.about(model_of(move.model))][-1:]
                raise CannotMove(f"{move.model} was not moved: {'; '.join(told)}")
        return found

    def warm(self) -> WarmStatus | None:
        """Return what model files are kept in host RAM; None if none are to be."""
        return self._loop.warm

    def saved_slots(self) -> SlotStatus | None:
        """Return the saved slots of unloaded models; None if none are to be saved."""
        return self._loop.saved_slots

    def decision_times(self) -> Mapping[str, Histogram]:
        """Return the seconds that decisions took, by event."""
        return self._loop.decision_times

    def why(self, name: str) -> Sequence[Decision]:
        """Return the last decisions about a model, oldest first. Raises UnknownModel."""
        return self._loop.feed.about(self._loop.fleet.resolve(name))

    def recent(self) -> Sequence[Decision]:
        """Return the last decisions about any model, oldest first."""
        return self._loop.feed.recent()

    def decisions(self) -> AsyncIterator[Decision]:
        """Yield decisions as they are made; a slow reader loses the oldest."""
        return self._loop.feed.subscribe()

    def log_path(self, name: str) -> Path | None:
        """Return the log of the model's engine, running or last run. Raises UnknownModel."""
        resolved = self._loop.fleet.resolve_copy(name)
        model = self._state.model(resolved)
        return self._loop.effects.log_of(model.residency, model_of(resolved))

    def remote_log(self, name: str) -> RemoteLog | None:
        """Return what reads the log of the model's last engine if that was on another machine."""
        return self._loop.effects.remote_log(model_of(self._loop.fleet.resolve_copy(name)))

    async def load(self, name: str) -> None:
        """Load a model, or return if it is loaded. Raises UnknownModel, DoesNotFit or EngineLoadFailed."""
        resolved = self._loop.fleet.resolve(name)
        self._loop.post(events.LoadAsked(self._loop.clock.now(), resolved))
        await self._loop.until(lambda: self._load_has_ended(resolved))
        model = self._state.model(resolved)
        residency = self._state.residency_of(model)
        if residency is None or residency.state is not ResidencyState.READY:
            failure = model.last_failure or f"{resolved} was not loaded"
            if "does not fit" in failure:
                raise DoesNotFit(failure)
            raise EngineLoadFailed(failure, cause=model.last_cause)

    async def unload(self, name: str) -> None:
        """Unload a model once it is idle, and return when its memory is free. Raises UnknownModel."""
        resolved = self._loop.fleet.resolve(name)
        self._loop.post(events.UnloadAsked(self._loop.clock.now(), resolved))
        before = self._state.models[resolved].residencies
        await self._loop.until(lambda: not before & self._state.residencies.keys())

    def pin(self, name: str, pinned: bool) -> None:
        """Pin a model, so that it is never evicted, or unpin it. Raises UnknownModel."""
        self._loop.post(events.PinAsked(self._loop.clock.now(), self._loop.fleet.resolve(name), pinned))

    def _move_has_ended(self, name: str) -> bool:
        """Whether a model does not move, and its memory where it was is free."""
        model = self._state.models.get(name)
        moves = model is not None and (model.successor is not None or bool(model.leaving))
        return not moves and name not in self._state.reservations and self._load_has_ended(name)

    def _load_has_ended(self, name: str) -> bool:
        """Whether the model is ready, or is neither loading nor to be loaded any more."""
        model = self._state.models.get(name)
        if model is None:
            return True
        residency = self._state.residency_of(model)
        if residency is not None and residency.state is ResidencyState.READY:
            return True
        # One that is to stay loaded remains wanted while it waits for its next attempt.
        if model.wanted and model.retry_at <= self._loop.clock.now():
            return False
        return residency is None or residency.state is not ResidencyState.LOADING
