"""The only caller of the scheduler: every event enters here, and every command is executed here."""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from cotenant.clock import Clock
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.decision_feed import DecisionFeed
from cotenant.daemon.core.effects import Effects
from cotenant.daemon.core.fleet import Fleet, Guest
from cotenant.domain.decisions import Histogram, SlotStatus, WarmStatus
from cotenant.domain.devices import DeviceId, Reading
from cotenant.domain.errors import (
    CotenantError,
    DoesNotFit,
    EngineLoadFailed,
    QueueFull,
    ShuttingDown,
    UnknownModel,
    WaitTimeout,
)
from cotenant.domain.placements import Placement
from cotenant.domain.requests import ModelGroup
from cotenant.domain.residencies import LeaseId, RefusalCode, ResidencyId, TicketId
from cotenant.domain.units import format_duration
from cotenant.interfaces import Engine, Lease
from cotenant.scheduling import events, invariants
from cotenant.scheduling.commands import (
    AdoptEngine,
    Command,
    DiscardEngine,
    ForgetEngine,
    Grant,
    PublishDecision,
    Refuse,
    StartEngine,
    StopEngine,
    WakeAt,
)
from cotenant.scheduling.scheduler import Scheduler

_LOG = logging.getLogger("cotenant.decisions")
_FAULTS: Final[Mapping[RefusalCode, type[CotenantError]]] = {
    RefusalCode.DOES_NOT_FIT: DoesNotFit,
    RefusalCode.QUEUE_FULL: QueueFull,
    RefusalCode.TIMED_OUT: WaitTimeout,
    RefusalCode.STOPPING: ShuttingDown,
    RefusalCode.REMOVED: UnknownModel,
}


_SLOW_S: Final = 0.02
_BOUNDS_S: Final = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2),
    *(_SLOW_S, 0.05, 0.1, 0.25, 0.5, 1.0),
)


class Loop:
    """Passes events to the scheduler and executes its commands, all in the event loop's thread.

    An event is handled and its commands are issued without a task switch, so effects happen in the order of
    events. `readings` are the last Reading of each device, `guests` the leases of memory, by name.
    `silent_s` returns for how long a node has not answered by now.
    `decision_times` are the seconds that each event and its commands took, by type:
    nothing else runs meanwhile, no stream either. Others read the public attributes; only this class
    changes them. `on_violation` is called if the scheduler's state breaks an invariant.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        effects: Effects,
        *,
        on_violation: Callable[[], None] = lambda: None,
    ) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self.effects = effects
        self.feed = DecisionFeed()
        self.fleet = Fleet.of(())
        self.groups: dict[str, ModelGroup] = {}
        self.guests: dict[str, Guest] = {}
        self.served_since: Mapping[str, int] = {}
        self.readings: dict[DeviceId, Reading] = {}
        self._read_of: dict[str | None, tuple[DeviceId, ...]] = {}
        self._warm: dict[str | None, WarmStatus] = {}
        self.saved_slots: SlotStatus | None = None
        self.silent_s: Callable[[str], float | None] = lambda _: None
        self.decision_times: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_BOUNDS_S))
        self._on_violation = on_violation
        self._waiting: dict[TicketId, asyncio.Future[Lease]] = {}
        self._found: dict[str, tuple[Engine, bool]] = {}
        self._conditions: set[asyncio.Event] = set()
        self._memory_changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    # Events and commands.

    def post(self, event: events.Event) -> None:
        """Handle an event and execute the commands that follow from it."""
        began = self.clock.now()
        self._execute(self.scheduler.handle(event))
        self._record_decision(type(event).__name__, began, event)
        if isinstance(event, events.EngineReady | events.EngineExited):
            self.wake_watchers()
        if isinstance(event, events.TimerFired) and not self.scheduler.state.leases:
            self._check_invariants()

    def serve(
        self,
        models: Sequence[ModelEntry],
        specs: events.ModelsChanged,
        groups: Sequence[ModelGroup] = (),
    ) -> None:
        """Serve exactly these models from now on, under all their names, and those of groups."""
        self.fleet, self.groups = Fleet.of(models), {group.name: group for group in groups}
        now = int(time.time())
        self.served_since = {name: self.served_since.get(name, now) for name in self.fleet.entries}
        self.post(specs)
        self.feed.keep_only(self.fleet.entries.keys() | self.guests.keys())

    def offer_engine(
        self, name: str, engine: Engine, model: str, placement: Placement, *, ready: bool
    ) -> None:
        """Have an engine that runs already taken over, or ended; `name` is any that no other has.

        It runs what would be started for the model now on the devices of `placement`, which were read.
        """
        self._found[name] = engine, ready
        self.post(events.EngineFound(self.clock.now(), name, model, placement, ready))

    def record_readings(self, readings: Mapping[DeviceId, Reading], node: str | None = None) -> None:
        """Keep the last Readings of a node's devices for the status pages; DevicesRead is the scheduler's."""
        for device in self._read_of.get(node, ()):
            self.readings.pop(device, None)
        self._read_of[node] = tuple(readings)
        self.readings.update(readings)

    @property
    def warm(self) -> WarmStatus | None:
        """What is warm, on all machines."""
        return WarmStatus.of_all(self._warm) if self._warm else None

    def record_warm(self, status: WarmStatus | None, node: str | None = None) -> None:
        """Keep what is warm on a machine for the status pages, nothing if it is None."""
        self._warm.pop(node, None)
        if status is not None:
            self._warm[node] = status

    def _execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Grant(ticket, lease, residency):
                    self._grant(ticket, self.lease_on(lease, residency))
                case Refuse():
                    self._refuse(command)
                case StartEngine(residency, name, placement):
                    in_flight = partial(self._in_flight, residency)
                    guest = self.guests.get(name)
                    entry = self.fleet.entries[name] if guest is None else guest.entry
                    host = None if guest is None else guest.host
                    self.effects.start(residency, entry, placement, self.post, in_flight, host)
                case AdoptEngine(residency, name, placement, engine):
                    in_flight, entry = partial(self._in_flight, residency), self.fleet.entries[name]
                    found, ready = self._found.pop(engine)
                    self.effects.adopt(residency, entry, placement, self.post, in_flight, found, ready=ready)
                case DiscardEngine(engine, why):
                    _LOG.info("engine ended that was found: engine=%s why=%s", engine, why)
                    self.effects.discard(self._found.pop(engine)[0])
                case ForgetEngine(residency, why):
                    self.effects.forget(residency, why)
                case StopEngine(residency, cuts_requests, moved):
                    self.effects.stop(residency, cuts_requests=cuts_requests, moved=moved)
                case WakeAt(at):
                    self._wake_at(at)
                case PublishDecision(decision):
                    self.feed.publish(decision)
        for condition in self._conditions:
            condition.set()

    def _record_decision(self, event: str, began: float, about: object) -> None:
        """Count how long a decision took, and log a long one; `about` has its model or residency."""
        took_s = self.clock.now() - began
        self.decision_times[event].observe(took_s)
        if took_s > _SLOW_S:
            residency = self.scheduler.state.residencies.get(getattr(about, "residency", ResidencyId(0)))
            model = getattr(about, "model", residency.model if residency else "-")
            _LOG.warning("a decision took %s: event=%s model=%s", format_duration(took_s), event, model)

    def _check_invariants(self) -> None:
        """Check them while nothing runs; after a violation nothing is guaranteed, so the daemon ends."""
        try:
            invariants.check(self.scheduler.state)
        except invariants.InvariantViolation as violation:
            _LOG.critical("%s; nothing more is admitted. Please report this with the lines above.", violation)
            self._on_violation()

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, at - self.clock.now())
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay, lambda: self.post(events.TimerFired(self.clock.now())))

    # Leases.

    async def wait_for_lease(self, request: events.RequestArrived) -> Lease:
        """Post a request and return its lease once it is granted; a refusal is raised (`_fault_of`)."""
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[request.ticket] = future
        self.post(request)
        try:
            return await future
        except WaitTimeout as fault:
            model = self.scheduler.state.models.get(request.model)
            run = self.effects.running.get(model.residency) if model and model.residency else None
            if run and run.engine and run.slot_reaper is None and run.engine.problem:
                fault.message += f": {run.engine.problem}"
            raise
        except asyncio.CancelledError:
            if self._waiting.pop(request.ticket, None) is not None:
                self.post(events.RequestLeft(self.clock.now(), request.ticket))
            elif future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise

    def lease_on(self, lease: LeaseId, residency: ResidencyId) -> Lease:
        """Return a granted lease on the engine of a ready residency."""
        running = self.effects.running[residency]
        free = partial(self._release, lease, residency)
        entry = self.fleet.entries.get(running.model) or self.guests[running.model].entry
        return Lease(
            running.ready_engine.endpoint,
            running.end,
            free,
            entry.timeout_s,
            entry.answer_timeout_s,
            running.missed,
        )

    def _release(self, lease: LeaseId, residency: ResidencyId, abandoned: bool) -> None:
        """Free a slot; one `abandoned` by its client only once the engine has stopped generating."""
        running = self.effects.running.get(residency)
        if abandoned and running is not None and running.slot_reaper is not None:
            running.slot_reaper.abandon(partial(self._release, lease, residency, False))
        else:
            began = self.clock.now()
            self._execute(self.scheduler.release(lease, began))
            self._record_decision(events.LeaseReleased.__name__, began, running)

    def _in_flight(self, residency: ResidencyId) -> int:
        found = self.scheduler.state.residencies.get(residency)
        return found.in_flight if found else 0

    def _grant(self, ticket: TicketId, lease: Lease) -> None:
        future = self._waiting.pop(ticket, None)
        if future is None or future.done():
            # The client has just left. Released later, since a command is being executed now.
            asyncio.get_running_loop().call_soon(lease.release)
        else:
            future.set_result(lease)

    def _refuse(self, refusal: Refuse) -> None:
        future = self._waiting.pop(refusal.ticket, None)
        if future is not None and not future.done():
            future.set_exception(_fault_of(refusal))

    # Waiting for changes.

    async def memory_changed(self) -> None:
        """Return when the next engine becomes ready or ends, or at `wake_watchers`."""
        await self._memory_changed.wait()

    def wake_watchers(self) -> None:
        """Wake those who wait for `memory_changed`: memory may have been freed."""
        self._memory_changed.set()
        self._memory_changed.clear()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is checked after each event."""
        changed = asyncio.Event()
        self._conditions.add(changed)
        try:
            while not condition():
                changed.clear()
                await changed.wait()
        finally:
            self._conditions.discard(changed)

    async def stop(self, grace_s: float) -> None:
        """Admit nothing more, and return when every engine has ended or `grace_s` has passed."""
        self.post(events.StopAsked(self.clock.now()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.until(lambda: not self.effects.running)
        await self.effects.close()
        if self._timer is not None:
            self._timer.cancel()


def _fault_of(refusal: Refuse) -> CotenantError:
    """Return the error for a refusal; that of a failed load has the cause."""
    if refusal.code is RefusalCode.LOAD_FAILED:
        return EngineLoadFailed(refusal.text, retry_after_s=refusal.retry_after_s, cause=refusal.cause)
    return _FAULTS[refusal.code](refusal.text, retry_after_s=refusal.retry_after_s)
