"""The sole writer: every event goes through here to the scheduler, and every command out of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.clock import Clock
from cotenant.concurrency.broadcast import Broadcast
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.effects import Effects, Running
from cotenant.daemon.core.fleet import Fleet
from cotenant.daemon.core.lease import FleetLease
from cotenant.daemon.core.refusals import fault_of
from cotenant.daemon.core.status import device_statuses, model_status, served_model
from cotenant.domain.decisions import Decision, DeviceStatus, ModelStatus, Outlook
from cotenant.domain.devices import Device, DeviceId, Reading
from cotenant.domain.errors import DoesNotFit, EngineLoadFailed
from cotenant.domain.requests import ServedModel
from cotenant.domain.residencies import LeaseId, ResidencyId, ResidencyState, TicketId
from cotenant.interfaces import DEFAULT_TERMS, LeaseTerms
from cotenant.scheduling import events, invariants
from cotenant.scheduling.commands import Command, Grant, Refuse, StartEngine, StopEngine, Tell, WakeAt
from cotenant.scheduling.scheduler import Scheduler
from cotenant.scheduling.state import ModelState, Residency

_LOG = logging.getLogger("cotenant.decisions")
_STORY: Final = 50
_RECENT: Final = 500
_BACKLOG: Final = 256

Reload = Callable[[], Awaitable[Sequence[str]]]


@dataclass(slots=True)
class _Served:
    """What is remembered of a model beside the scheduler's own state."""

    created_at: int
    story: deque[Decision]
    log_path: Path | None = None


class Loop:
    """Router and operator in one: it alone calls the scheduler, and all in the event loop's thread.

    Nothing here waits while it holds anything: an event is handled and its commands are issued without a task
    switch, so that the order of events is the order of their effects. `readings` are the devices' last ones.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        *,
        reload: Reload | None = None,
        on_violation: Callable[[], None] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._reload = reload
        self._on_broken_law = on_violation
        self._effects: Effects | None = None
        self._fleet = Fleet.of(())
        self._served: dict[str, _Served] = {}
        self._waiting: dict[TicketId, asyncio.Future[FleetLease]] = {}
        self._changed: set[asyncio.Event] = set()
        self._subscribers: Broadcast[Decision] = Broadcast(_BACKLOG)
        self._recent: deque[Decision] = deque(maxlen=_RECENT)
        self._stirred = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.listeners: list[Callable[[Decision], None]] = []
        self.readings: Mapping[DeviceId, Reading] = {}

    def attach(self, effects: Effects) -> None:
        """Give it the means to carry commands out."""
        self._effects = effects

    # Events and commands.

    def post(self, event: events.Event) -> None:
        """Take in an event and carry out what follows from it."""
        self._execute(self._scheduler.handle(event))
        if isinstance(event, events.EngineReady | events.EngineExited):
            self.wake_watchers()
        if isinstance(event, events.TimerFired) and not self._scheduler.state.leases:
            self._check_invariants()

    def serve(self, models: Sequence[ModelEntry], specs: events.ModelsChanged) -> None:
        """Serve these models from now on, under all their names."""
        self._fleet = Fleet.of(models)
        for name in self._fleet.entries:
            self._served.setdefault(name, _Served(int(time.time()), deque(maxlen=_STORY)))
        self.post(specs)
        for name in self._served.keys() - self._fleet.entries.keys():
            del self._served[name]

    def _execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Grant(ticket, lease, residency):
                    self._grant(ticket, lease, residency)
                case Refuse():
                    self._refuse(command)
                case StartEngine(residency, name, placement):
                    self.effects.start(residency, self._fleet.entries[name], placement)
                case StopEngine(residency):
                    self.effects.stop(residency)
                case WakeAt(at):
                    self._wake_at(at)
                case Tell(decision):
                    self._tell(decision)
        for changed in self._changed:
            changed.set()

    def _check_invariants(self) -> None:
        """Check the laws while nothing runs; once one is broken nothing more can be promised, so it ends."""
        try:
            invariants.check(self._scheduler.state)
        except invariants.InvariantViolation as broken:
            _LOG.critical("%s; nothing more is admitted. Please report this with the lines above.", broken)
            if self._on_broken_law is not None:
                self._on_broken_law()

    @property
    def effects(self) -> Effects:
        """The means to carry commands out."""
        if self._effects is None:
            raise RuntimeError("no effects are attached")
        return self._effects

    def _grant(self, ticket: TicketId, lease: LeaseId, residency: ResidencyId) -> None:
        granted = self._lease(lease, residency)
        future = self._waiting.pop(ticket, None)
        if future is None or future.done():
            # The client left in this very turn. Released later, since a command is being carried out now.
            asyncio.get_running_loop().call_soon(granted.release)
        else:
            future.set_result(granted)

    def _refuse(self, refusal: Refuse) -> None:
        future = self._waiting.pop(refusal.ticket, None)
        if future is not None and not future.done():
            future.set_exception(fault_of(refusal))

    def _lease(self, lease: LeaseId, residency: ResidencyId) -> FleetLease:
        endpoint, end = self.effects.engine(residency).endpoint, self.effects.running[residency].end
        return FleetLease(self.release_lease, lease, residency, endpoint, end)

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, at - self._clock.now())
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay, lambda: self.post(events.TimerFired(self._clock.now())))

    def _tell(self, decision: Decision) -> None:
        _LOG.info(
            "%d %s model=%s cause=%s: %s",
            decision.number,
            decision.kind,
            decision.model or "-",
            decision.cause,
            decision.text,
        )
        self._recent.append(decision)
        served = self._served.get(decision.model or "")
        if served is not None:
            served.story.append(decision)
        self._subscribers.publish(decision)
        for listener in self.listeners:
            listener(decision)

    # What its listeners ask.

    def entry(self, name: str) -> ModelEntry | None:
        """Return a model's entry, by its own name."""
        return self._fleet.entries.get(name)

    def models_awaiting_room(self) -> Sequence[str]:
        """Name the models that room is being made for."""
        return tuple(self._scheduler.state.reservations)

    def models_without_room(self) -> Sequence[str]:
        """Name the models that are asked for, and for which nothing is under way: no load, no eviction."""
        state, now = self._scheduler.state, self._clock.now()
        if state.loading_devices():
            return ()
        return [
            name
            for name, model in state.models.items()
            if model.cold_and_wanted and name not in state.reservations and model.retry_at <= now
        ]

    def loaded(self) -> Sequence[tuple[Residency, Running]]:
        """Return what is loaded, with the engines that run it."""
        state = self._scheduler.state
        return [
            (state.residencies[r], running)
            for r, running in self.effects.running.items()
            if r in state.residencies
        ]

    @property
    def reclaims(self) -> bool:
        """Whether memory of an engine that has ended is still to be seen back."""
        states = (residency.state for residency in self._scheduler.state.residencies.values())
        return ResidencyState.RECLAIMING in states

    async def memory_changed(self) -> None:
        """Return when the next engine has become ready, or has ended."""
        await self._stirred.wait()

    def wake_watchers(self) -> None:
        """Have the cards looked at now: memory has come free that no engine's end tells of."""
        self._stirred.set()
        self._stirred.clear()

    def devices_read(self) -> Sequence[Device]:
        """Return the devices of the last Readings, in planned order."""
        return [reading.device for reading in self._scheduler.state.ledger.readings.values()]

    def measured_bytes(self, residency: ResidencyId, device: DeviceId) -> int | None:
        """Return what a device's last Reading says that a residency holds there."""
        reading = self._scheduler.state.ledger.readings.get(device)
        held = reading.engine_bytes if reading else None
        return None if held is None else held.get(residency)

    def models(self) -> Sequence[ServedModel]:
        """List what is served, loaded or not."""
        return [self._served_model(entry) for entry in self._fleet.entries.values()]

    def resolve(self, name: str) -> str:
        """Return the own name of the model that a name or alias means. Raises UnknownModel."""
        return self._fleet.resolve(name)

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> FleetLease | None:
        """Grant a lease at once on a ready model with a free slot. Raises UnknownModel."""
        granted = self._scheduler.try_grant(self._fleet.resolve(name), self._clock.now(), terms.keep_alive_s)
        return None if granted is None else self._lease(*granted)

    async def lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> FleetLease:
        """Wait in line, while the model is loaded if need be.

        Raises UnknownModel, QueueFull, WaitTimeout, DoesNotFit, EngineLoadFailed or ShuttingDown.
        """
        entry = self._fleet.entries[self._fleet.resolve(name)]
        now = self._clock.now()
        timeout_s = entry.timeout_s if terms.timeout_s is None else terms.timeout_s
        ticket = TicketId(self._scheduler.state.next_id())
        future: asyncio.Future[FleetLease] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        priority = entry.priority if terms.priority is None else terms.priority
        self.post(
            events.RequestArrived(now, ticket, entry.name, now + timeout_s, priority, terms.keep_alive_s)
        )
        try:
            return await future
        except asyncio.CancelledError:
            if self._waiting.pop(ticket, None) is not None:
                self.post(events.RequestLeft(self._clock.now(), ticket))
            elif future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise

    def outlook(self, name: str) -> Outlook | None:
        """Tell what one more request for a model may expect; None if it need not wait."""
        return self._scheduler.outlook(self._fleet.resolve(name), self._clock.now())

    def release_lease(self, lease: LeaseId, residency: ResidencyId, *, abandoned: bool) -> None:
        """Take a slot back, at once or when the engine has freed it."""
        slot_reaper = self.effects.slot_reaper(residency) if abandoned else None
        if slot_reaper is not None:
            slot_reaper.abandon(lambda: self.release_lease(lease, residency, abandoned=False))
        else:
            self._execute(self._scheduler.release(lease, self._clock.now()))

    def in_flight(self, residency: ResidencyId) -> int:
        """Count the leases on a residency."""
        found = self._scheduler.state.residencies.get(residency)
        return found.in_flight if found else 0

    # The operator.

    def statuses(self) -> Sequence[ModelStatus]:
        """How every model is doing."""
        state, now = self._scheduler.state, self._clock.now()
        return [
            model_status(state, entry, model, now, self._running(model))
            for name, entry in self._fleet.entries.items()
            if (model := state.models.get(name)) is not None
        ]

    def devices(self) -> Sequence[DeviceStatus]:
        """How every device's memory is shared."""
        engines = [running.engine for running in self.effects.running.values()]
        ours = {engine.pid for engine in engines if engine is not None and engine.pid is not None}
        return device_statuses(self._scheduler.state, self.readings, ours)

    def why(self, name: str) -> Sequence[Decision]:
        """The last decisions about a model, oldest first. Raises UnknownModel."""
        return tuple(self._served[self._fleet.resolve(name)].story)

    def recent(self) -> Sequence[Decision]:
        """The last decisions about anything, oldest first."""
        return tuple(self._recent)

    def log_path(self, name: str) -> Path | None:
        """The log of the model's engine, running or last run. Raises UnknownModel."""
        resolved = self._fleet.resolve(name)
        self._remember_log(resolved)
        return self._served[resolved].log_path

    async def load(self, name: str) -> None:
        """Load it, or return if it is loaded. Raises UnknownModel, DoesNotFit or EngineLoadFailed."""
        resolved = self._fleet.resolve(name)
        self.post(events.LoadAsked(self._clock.now(), resolved))
        await self._until(lambda: self._is_ready(resolved) or not self._is_wanted(resolved))
        if not self._is_ready(resolved):
            model = self._scheduler.state.model(resolved)
            failure = model.last_failure or f"{resolved} was not loaded"
            if "does not fit" in failure:
                raise DoesNotFit(failure)
            raise EngineLoadFailed(failure, cause=model.last_cause)

    async def unload(self, name: str) -> None:
        """Unload it once its requests are answered; return when its memory is free. Raises UnknownModel."""
        resolved = self._fleet.resolve(name)
        self.post(events.UnloadAsked(self._clock.now(), resolved))
        model = self._scheduler.state.models[resolved]
        residency = model.residency
        await self._until(lambda: residency is None or model.residency != residency)

    def pin(self, name: str, pinned: bool) -> None:
        """Keep it loaded whatever happens, or stop doing so. Raises UnknownModel."""
        self.post(events.PinAsked(self._clock.now(), self._fleet.resolve(name), pinned))

    async def reload(self) -> Sequence[str]:
        """Read the configuration again and say what changed. Raises BadSetting and changes nothing."""
        return [] if self._reload is None else await self._reload()

    def decisions(self) -> AsyncIterator[Decision]:
        """Follow decisions as they are made; a slow reader misses the oldest."""
        return self._subscribers.subscribe()

    async def stop(self, grace_s: float) -> None:
        """Admit nothing more, and return when every engine has gone or the grace is over."""
        self.post(events.StopAsked(self._clock.now()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._until(lambda: not self.effects.running)
        await self.effects.close()
        if self._timer is not None:
            self._timer.cancel()

    async def _until(self, condition: Callable[[], bool]) -> None:
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            while not condition():
                changed.clear()
                await changed.wait()
        finally:
            self._changed.discard(changed)

    def _is_ready(self, name: str) -> bool:
        model = self._scheduler.state.models.get(name)
        residency = self._scheduler.state.residency_of(model) if model else None
        return residency is not None and residency.state is ResidencyState.READY

    def _is_wanted(self, name: str) -> bool:
        model = self._scheduler.state.models.get(name)
        if model is None:
            return False
        residency = self._scheduler.state.residency_of(model)
        return model.wanted or (residency is not None and residency.state is ResidencyState.LOADING)

    def _served_model(self, entry: ModelEntry) -> ServedModel:
        self._remember_log(entry.name)
        served = self._served[entry.name]
        model = self._scheduler.state.models.get(entry.name)
        residency = self._scheduler.state.residency_of(model) if model else None
        running = self.effects.running.get(residency.id) if residency else None
        return served_model(entry, residency, running, served.created_at, served.log_path)

    def _remember_log(self, name: str) -> None:
        for running in self.effects.running.values():
            if running.model == name and running.engine is not None:
                self._served[name].log_path = running.engine.log_path

    def _running(self, model: ModelState) -> Running | None:
        return None if model.residency is None else self.effects.running.get(model.residency)
