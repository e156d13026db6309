"""The scheduler among simulated engines and clients: what the daemon's shell is to it in earnest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import LeaseId, RefusalCode, ResidencyId, TicketId
from cotenant.scheduling import events, invariants
from cotenant.scheduling.commands import Command, Grant, Refuse, StartEngine, StopEngine, Tell, WakeAt
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.event_queue import Agenda
from cotenant.simulation.faults import NO_FAULTS, Faults
from cotenant.simulation.machine import Driver, Machine
from cotenant.simulation.models import SimulatedModel
from cotenant.simulation.outcome import Account
from cotenant.simulation.timeline import Story
from cotenant.simulation.workload import Request

_LOAD_SPREAD: Final = 0.2
_END_S: Final = (0.1, 0.6)
_SLOW: Final = (4.0, 12.0)
_SLOW_END_S: Final = (5.0, 25.0)
_LATE_MEMORY_S: Final = (0.5, 8.0)
_LOST_MEMORY_S: Final = (15.0, 60.0)
_LIFE_S: Final = 40.0


class BrokenPromise(AssertionError):
    """The scheduler did something that no shell could carry out, or forgot a request."""


class Outcome(StrEnum):
    """How a request ends."""

    SERVED = "served"
    BROKEN = "broken"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    LEFT = "left"


@dataclass(slots=True)
class Client:
    """A request, and how it fared; instants are of virtual time."""

    request: Request
    deadline: float
    granted_at: float | None = None
    outcome: Outcome | None = None
    refusal: RefusalCode | None = None


@dataclass(slots=True)
class SimulatedEngine:
    """A process that runs a model, until it is `gone`."""

    residency: ResidencyId
    model: SimulatedModel
    wanted: dict[DeviceId, int]
    loading: bool = True
    asked_to_end: bool = False
    gone: bool = False
    ready_at: float | None = None
    leases: dict[LeaseId, Client] = field(default_factory=dict)
    busy_since: float = 0.0
    busy_s: float = 0.0


class World:
    """Engines, cards and clients around a scheduler, in virtual time.

    `watched` checks every law after every step, and keeps the story for the message of a failure. Readings
    come every `read_every_s`, or once if that is None.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        machine: Machine,
        models: Iterable[SimulatedModel],
        dice: Random,
        *,
        faults: Faults = NO_FAULTS,
        tick_s: float | None = None,
        read_every_s: float | None = None,
        watched: bool = True,
    ) -> None:
        self.agenda = Agenda(dice, tick_s)
        self.scheduler = scheduler
        self.machine = machine
        self.models: Mapping[str, SimulatedModel] = {model.name: model for model in models}
        self.faults = faults
        self.account = Account()
        self.clients: dict[TicketId, Client] = {}
        self.story = Story() if watched else None
        self._dice = dice
        self._read_every_s = read_every_s
        self._engines: dict[ResidencyId, SimulatedEngine] = {}
        self._timer = 0
        self._open = 0
        self._coming = False

    @property
    def open_requests(self) -> int:
        """Requests that have come and not ended."""
        return self._open

    @property
    def engines(self) -> tuple[SimulatedEngine, ...]:
        """The processes that live."""
        return tuple(self._engines.values())

    def begin(self, specs: Sequence[ModelSpec]) -> None:
        """Measure the cards and serve the models."""
        self.read()
        self.send(events.ModelsChanged(self.agenda.now, tuple(specs)))
        if self._read_every_s is not None:
            self.agenda.after(self._read_every_s, self._read_again)

    def expect(self, requests: Sequence[Request], patience_s: float = math.inf) -> None:
        """Have requests come at their instants; each waits for so long."""
        self._next_request(deque(requests), patience_s)

    def send(self, event: events.Event) -> None:
        """Hand the scheduler an event and do what it wants."""
        commands = self.scheduler.handle(event)
        if self.story is not None:
            self.story.add(event, commands)
        self._carry_out(commands)

    def read(self) -> None:
        """Measure the cards now."""
        self.send(events.DevicesRead(self.agenda.now, self.machine.readings(self.agenda.now)))

    def lose(self, device: DeviceId) -> None:
        """Let a card disappear, and the processes on it with it."""
        self.machine.missing.add(device)
        for engine in [e for e in self._engines.values() if device in e.wanted]:
            self.agenda.after(self._dice.uniform(0, 3), lambda e=engine: self._ends(e, "its GPU is lost"))  # type: ignore[misc]

    def leaves(self, ticket: TicketId) -> None:
        """A client gives up waiting, if it still does."""
        client = self.clients[ticket]
        if client.outcome is None and client.granted_at is None:
            self.send(events.RequestLeft(self.agenda.now, ticket))
            self._end(client, Outcome.LEFT)

    def run(self, *, until: float = math.inf, steps: float = math.inf) -> bool:
        """Run until nobody waits or is served and nobody is to come, until an instant, or for some steps.

        Whether anybody is left.
        """
        while len(self.agenda) and self.agenda.now < until and (self._open or self._coming) and steps > 0:
            self.agenda.step()
            steps -= 1
        return len(self.agenda) > 0 and (self._open > 0 or self._coming)

    def _read_again(self) -> None:
        self.read()
        if self._read_every_s is not None:
            self.agenda.after(self._read_every_s, self._read_again)

    # Requests

    def _next_request(self, requests: deque[Request], patience_s: float) -> None:
        self._coming = bool(requests)
        if requests:
            self.agenda.at(requests[0].at, lambda: self._arrives(requests, patience_s))

    def _arrives(self, requests: deque[Request], patience_s: float) -> None:
        request = requests.popleft()
        self._next_request(requests, patience_s)
        now = self.agenda.now
        ticket = TicketId(len(self.clients) + 1)
        own_s = request.patience_s
        client = self.clients[ticket] = Client(request, now + (patience_s if own_s is None else own_s))
        self._open += 1
        keep_alive_s = request.keep_alive_s
        lease = self.scheduler.try_grant(request.model, now, keep_alive_s)
        if lease is not None:
            self._check()
            self._serve(client, *lease)
            return
        arrived = (now, ticket, request.model, client.deadline, request.priority or 0, keep_alive_s)
        self.send(events.RequestArrived(*arrived))
        if client.outcome is None and self._happens(self.faults.leaves_waiting):
            self.agenda.after(self._dice.expovariate(0.1), lambda: self.leaves(ticket))

    def _serve(self, client: Client, lease: LeaseId, residency: ResidencyId) -> None:
        if client.outcome is not None or client.granted_at is not None:
            raise BrokenPromise(f"{client} is granted, and had ended")
        client.granted_at = self.agenda.now
        engine = self._engines.get(residency)
        if engine is None or engine.loading or (engine.asked_to_end and not engine.gone):
            raise BrokenPromise(f"{client.request.model} is granted on #{residency}, which serves nobody")
        if len(engine.leases) >= engine.model.slots:
            raise BrokenPromise(f"{client.request.model} is granted a slot that #{residency} does not have")
        if not engine.leases:
            engine.busy_since = self.agenda.now
        engine.leases[lease] = client
        if engine.gone:
            # The scheduler has not heard of its end yet: the connection breaks at once.
            self.agenda.after(0.0, lambda: self._release(engine, lease, Outcome.BROKEN))
            return
        service_s = engine.model.service_s(client.request)
        if self._happens(self.faults.leaves_served):
            service_s *= self._dice.random()
        self.agenda.after(service_s, lambda: self._release(engine, lease, Outcome.SERVED))

    def _release(self, engine: SimulatedEngine, lease: LeaseId, outcome: Outcome) -> None:
        client = engine.leases.pop(lease, None)
        if client is None:
            return
        self._end(client, outcome)
        if not engine.leases:
            engine.busy_s += self.agenda.now - engine.busy_since
        commands = self.scheduler.release(lease, self.agenda.now)
        if self.story is not None:
            self.story.add(events.LeaseReleased(self.agenda.now, lease), commands)
        self._carry_out(commands)

    def _end(self, client: Client, outcome: Outcome) -> None:
        if client.outcome is not None:
            raise BrokenPromise(f"{client} has ended already, and is now {outcome}")
        client.outcome = outcome
        self._open -= 1

    # Commands

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Grant(ticket, lease, residency):
                    self._serve(self.clients[ticket], lease, residency)
                case Refuse(ticket, code):
                    client = self.clients[ticket]
                    if client.granted_at is not None:
                        raise BrokenPromise(f"{client} is refused, and was granted")
                    if code is RefusalCode.TIMED_OUT and self.agenda.now < client.deadline - 1e-6:
                        raise BrokenPromise(f"{client} has timed out before its deadline")
                    client.refusal = code
                    late = code is RefusalCode.TIMED_OUT
                    self._end(client, Outcome.TIMED_OUT if late else Outcome.REFUSED)
                case StartEngine():
                    self._start(command)
                case StopEngine(residency):
                    self._stop(self._engines.get(residency))
                case WakeAt(at):
                    self._wake_at(at)
                case Tell(decision):
                    self.account.hear(decision)
        self._check()

    def _wake_at(self, instant: float) -> None:
        self._timer += 1
        number = self._timer

        def fire() -> None:
            if number == self._timer:
                self.send(events.TimerFired(self.agenda.now))

        if instant < math.inf:
            self.agenda.at(instant, fire)

    def _check(self) -> None:
        if self.story is None:
            return
        invariants.check(self.scheduler.state)
        for ticket in self.scheduler.state.tickets:
            client = self.clients[ticket]
            if client.outcome is not None or client.granted_at is not None:
                raise BrokenPromise(f"{client} has ended and still waits")
            if self.agenda.now > client.deadline + 1:
                raise BrokenPromise(f"{client} waits on, past its deadline")

    # Engines

    def _start(self, command: StartEngine) -> None:
        model = self.models[command.model]
        wanted = {s.device.id: round(s.parts.total * model.truth) for s in command.placement.used_shares}
        for other in self._engines.values():
            if other.model is model:
                raise BrokenPromise(f"{model.name} is started beside its other engine #{other.residency}")
            if other.loading and not other.asked_to_end and wanted.keys() & other.wanted.keys():
                raise BrokenPromise(f"{model.name} is started where {other.model.name} is loading")
        engine = self._engines[command.residency] = SimulatedEngine(command.residency, model, wanted)
        self.account.load(model.name, sum(wanted.values()))
        load_s = model.load_s * self._dice.lognormvariate(0, _LOAD_SPREAD)
        if self._happens(self.faults.slow_load):
            load_s *= self._dice.uniform(*_SLOW)
        self.agenda.after(load_s * self._dice.uniform(0.05, 0.9), lambda: self._allocates(engine))
        if self._happens(self.faults.failed_load):
            self.agenda.after(load_s * self._dice.random(), lambda: self._ends(engine, "it failed to load"))
        self.agenda.after(load_s, lambda: self._becomes_ready(engine))

    def _allocates(self, engine: SimulatedEngine) -> None:
        if engine.loading and not engine.gone and not self.machine.take(engine.residency, engine.wanted):
            self.account.out_of_memory += 1
            self._ends(engine, "out of memory")

    def _becomes_ready(self, engine: SimulatedEngine) -> None:
        if engine.gone or engine.asked_to_end:
            return
        engine.loading = False
        engine.ready_at = self.agenda.now
        self.send(events.EngineReady(self.agenda.now, engine.residency))
        if self._happens(self.faults.death):
            life_s = self._dice.expovariate(1 / _LIFE_S)
            self.agenda.after(life_s, lambda: self._ends(engine, "killed by signal 9"))

    def _stop(self, engine: SimulatedEngine | None) -> None:
        if engine is None or engine.gone:
            # Its end is on its way to the scheduler.
            return
        lost = self.machine.missing & engine.wanted.keys()
        if engine.leases and not lost:
            raise BrokenPromise(f"{engine.model.name} is stopped while {len(engine.leases)} are served")
        engine.asked_to_end = True
        slow = self._happens(self.faults.slow_end)
        end_s = self._dice.uniform(*(_SLOW_END_S if slow else _END_S))
        self.agenda.after(end_s, lambda: self._ends(engine, "stopped"))

    def _ends(self, engine: SimulatedEngine, why: str) -> None:
        """The process is gone; its requests break off, before the scheduler hears of it or after."""
        if engine.gone:
            return
        engine.gone = True
        if engine.ready_at is not None:
            self._settle_account(engine, engine.ready_at)
        self._give_back_memory(engine)
        heard_first = self._dice.random() < 0.5
        if heard_first:
            self._exits(engine, why)
        for lease in [*engine.leases]:
            self._release(engine, lease, Outcome.BROKEN)
        if not heard_first:
            self._exits(engine, why)

    def _exits(self, engine: SimulatedEngine, why: str) -> None:
        del self._engines[engine.residency]
        self.send(events.EngineExited(self.agenda.now, engine.residency, why))

    def _settle_account(self, engine: SimulatedEngine, ready_at: float) -> None:
        if engine.leases:
            engine.busy_s += self.agenda.now - engine.busy_since
            engine.busy_since = self.agenda.now
        ready_s = self.agenda.now - ready_at
        self.account.was_ready(engine.model.name, engine.model.bytes, ready_s, engine.busy_s)

    def close_account(self) -> Account:
        """Count the engines that still run, and return what the run came to."""
        for engine in self._engines.values():
            if engine.ready_at is not None:
                self._settle_account(engine, engine.ready_at)
        return self.account

    def _give_back_memory(self, engine: SimulatedEngine) -> None:
        self.machine.end(engine.residency)
        tells = self.machine.driver is not Driver.NOTHING
        if tells and self._happens(self.faults.lost_memory):
            later_s = self._dice.uniform(*_LOST_MEMORY_S)
        elif tells and self._happens(self.faults.late_memory):
            later_s = self._dice.uniform(*_LATE_MEMORY_S)
        else:
            self.machine.give_back(engine.residency)
            return
        self.agenda.after(later_s, lambda: self.machine.give_back(engine.residency))

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._dice.random() < chance
