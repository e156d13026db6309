"""The scheduler among simulated engines and clients, in place of the daemon."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import LeaseId, RefusalCode, ResidencyId, TicketId
from cotenant.scheduling import events, invariants
from cotenant.scheduling.commands import (
    Command,
    Grant,
    PublishDecision,
    Refuse,
    StartEngine,
    StopEngine,
    WakeAt,
)
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.closed_loop import Turn
from cotenant.simulation.engine import SimulatedEngine
from cotenant.simulation.event_queue import EventQueue, Timeline
from cotenant.simulation.machine import NO_FAULTS, Driver, Faults, Machine
from cotenant.simulation.models import Client, Outcome, Request, SimulatedModel
from cotenant.simulation.totals import Totals

_LOAD_SPREAD: Final = 0.2
_END_S: Final = (0.1, 0.6)  # Times the load time, if that is below a second.
_SLOW: Final = (4.0, 12.0)
_SLOW_END_S: Final = (5.0, 25.0)
_LATE_MEMORY_S: Final = (0.5, 8.0)
_LOST_MEMORY_S: Final = (15.0, 60.0)
_LIFE_S: Final = 40.0
_HUNG_S: Final = (10.0, 40.0)


class ContractViolation(AssertionError):
    """The scheduler issued a command that cannot be executed, or lost a request."""


class World:
    """Engines, cards and clients around a scheduler, in virtual time.

    `watched` checks all invariants after every step, kept sums with each Reading, and records the timeline
    for the message of a failure. Readings come every `read_every_s`, or once if that is None.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        machine: Machine,
        models: Iterable[SimulatedModel],
        rng: Random,
        *,
        faults: Faults = NO_FAULTS,
        tick_s: float | None = None,
        read_every_s: float | None = None,
        watched: bool = True,
    ) -> None:
        self.queue = EventQueue(rng, tick_s)
        self.scheduler = scheduler
        self.machine = machine
        self.models: Mapping[str, SimulatedModel] = {model.name: model for model in models}
        self.faults = faults
        self.totals = Totals()
        self.clients: dict[TicketId, Client] = {}
        self.timeline = Timeline() if watched else None
        self.on_end: Callable[[Client], None] = lambda _: None
        self._rng = rng
        self._read_every_s = read_every_s
        self._engines: dict[ResidencyId, SimulatedEngine] = {}
        self._engines_of: dict[str, list[SimulatedEngine]] = {}
        self._engines_on: dict[DeviceId, list[SimulatedEngine]] = {}
        self._timer = 0
        self.open_requests = 0  # Those that have arrived and not ended.
        self._coming = 0

    def begin(self, specs: Sequence[ModelSpec]) -> None:
        """Read the cards and configure the models."""
        self.read()
        self.send(events.ModelsChanged(self.queue.now, tuple(specs)))
        if self._read_every_s is not None:
            self.queue.after(self._read_every_s, self._read_again)

    def expect(self, requests: Sequence[Request], patience_s: float = math.inf) -> None:
        """Schedule requests; each waits for at most `patience_s` unless it says otherwise."""
        self._next_request(deque(requests), patience_s)

    def visit(self, turns: Iterator[Turn], until: float, patience_s: float = math.inf) -> None:
        """Have a closed-loop client ask: each time a while after its last answer, and not after `until`."""
        turn = next(turns, None)
        if turn is not None and self.queue.now + turn.think_s <= until:
            self._coming += 1
            self.queue.after(turn.think_s, lambda: self._asks_again(turn.request, turns, until, patience_s))

    def send(self, event: events.Event) -> None:
        """Pass an event to the scheduler and execute its commands."""
        commands = self.scheduler.handle(event)
        if self.timeline is not None:
            self.timeline.add(event, commands)
        self._execute(commands)

    def read(self) -> None:
        """Send readings of the cards."""
        for node, readings in self.machine.readings(self.queue.now):
            self.send(events.DevicesRead(self.queue.now, readings, node))
        if self.timeline is not None:
            invariants.check_kept(self.scheduler.state)

    def lose(self, device: DeviceId) -> None:
        """Remove a card and end the processes on it."""
        self.machine.missing.add(device)
        self.end_engines(device, "its GPU is lost", 3.0)

    def end_engines(self, device: DeviceId, why: str, within_s: float) -> None:
        """End all engines on a card, as the end of its MPS daemon does."""
        for engine in [*self._engines_on.get(device, ())]:
            self.queue.after(self._rng.uniform(0, within_s), lambda e=engine: self._ends(e, why))  # type: ignore[misc]

    def heal(self) -> None:
        """End all faults, but not what is under way: slow loads, hung engines, memory not yet free."""
        self.faults = NO_FAULTS
        self.machine.heal()

    def leaves(self, ticket: TicketId) -> None:
        """Abandon a request if it still waits."""
        client = self.clients[ticket]
        if client.outcome is None and client.granted_at is None:
            self.send(events.RequestLeft(self.queue.now, ticket))
            self._end(client, Outcome.LEFT)

    def run(self, *, until: float = math.inf, steps: float = math.inf) -> bool:
        """Run until no request is left, until an instant, or for some steps. True if requests are left."""
        while self._has_requests and self.queue.now < until and steps > 0:
            self.queue.step()
            steps -= 1
        return self._has_requests

    @property
    def _has_requests(self) -> bool:
        return len(self.queue) > 0 and (self.open_requests + self._coming > 0)

    def _read_again(self) -> None:
        self.read()
        if self._read_every_s is not None:
            self.queue.after(self._read_every_s, self._read_again)

    # Requests

    def _next_request(self, requests: deque[Request], patience_s: float) -> None:
        if requests:
            self._coming += 1
            self.queue.at(requests[0].at, lambda: self._arrives(requests, patience_s))

    def _arrives(self, requests: deque[Request], patience_s: float) -> None:
        self._coming -= 1
        request = requests.popleft()
        self._next_request(requests, patience_s)
        self._asks(request, patience_s)

    def _asks_again(self, request: Request, turns: Iterator[Turn], until: float, patience_s: float) -> None:
        self._coming -= 1
        request = replace(request, at=self.queue.now)
        self._asks(request, patience_s, lambda: self.visit(turns, until, patience_s))

    def _asks(self, request: Request, patience_s: float, then: Callable[[], None] = lambda: None) -> None:
        now = self.queue.now
        ticket = TicketId(len(self.clients) + 1)
        own_s = request.patience_s
        deadline = now + (patience_s if own_s is None else own_s)
        client = self.clients[ticket] = Client(request, deadline, then)
        self.open_requests += 1
        keep_alive_s = request.keep_alive_s
        lease = self.scheduler.try_grant(request.model, now, keep_alive_s)
        if lease is not None:
            self._check()
            self._serve(client, *lease)
            return
        arrived = (now, ticket, request.model, client.deadline, request.priority or 0, keep_alive_s)
        self.send(events.RequestArrived(*arrived))
        if client.outcome is None and self._happens(self.faults.leaves_waiting):
            self.queue.after(self._rng.expovariate(0.1), lambda: self.leaves(ticket))

    def _serve(self, client: Client, lease: LeaseId, residency: ResidencyId) -> None:
        if client.outcome is not None or client.granted_at is not None:
            raise ContractViolation(f"{client} is granted, and had ended")
        client.granted_at = self.queue.now
        engine = self._engines.get(residency)
        if engine is None or engine.loading or (engine.asked_to_end and not engine.gone):
            raise ContractViolation(
                f"{client.request.model} is granted on #{residency}, which does not serve"
            )
        if len(engine.leases) >= engine.model.slots:
            raise ContractViolation(f"{client.request.model} is granted a slot too many of #{residency}")
        if not engine.leases:
            engine.busy_since = self.queue.now
        engine.leases[lease] = client
        if engine.gone:
            # The scheduler does not know of its exit yet: the connection breaks at once.
            self.queue.after(0.0, lambda: self._release(engine, lease, Outcome.BROKEN))
            return
        service_s = engine.model.service_s(client.request)
        if self._happens(self.faults.leaves_served):
            service_s *= self._rng.random()
        self.queue.after(service_s, lambda: self._release(engine, lease, Outcome.SERVED))

    def _release(self, engine: SimulatedEngine, lease: LeaseId, outcome: Outcome) -> None:
        client = None if engine.hung and not engine.gone else engine.leases.pop(lease, None)
        if client is None:
            return
        self._end(client, outcome)
        if not engine.leases:
            engine.busy_s += self.queue.now - engine.busy_since
        commands = self.scheduler.release(lease, self.queue.now)
        if self.timeline is not None:
            self.timeline.add(events.LeaseReleased(self.queue.now, lease), commands)
        self._execute(commands)

    def _end(self, client: Client, outcome: Outcome) -> None:
        if client.outcome is not None:
            raise ContractViolation(f"{client} has ended already, and is now {outcome}")
        client.outcome = outcome
        self.open_requests -= 1
        client.then()
        self.on_end(client)

    # Commands

    def _execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Grant(ticket, lease, residency):
                    self._serve(self.clients[ticket], lease, residency)
                case Refuse(ticket, code, _, retry_after_s):
                    client = self.clients[ticket]
                    if client.granted_at is not None:
                        raise ContractViolation(f"{client} is refused, and was granted")
                    if code is RefusalCode.TIMED_OUT and self.queue.now < client.deadline - 1e-6:
                        raise ContractViolation(f"{client} has timed out before its deadline")
                    client.refusal, client.retry_after_s = code, retry_after_s
                    late = code is RefusalCode.TIMED_OUT
                    self._end(client, Outcome.TIMED_OUT if late else Outcome.REFUSED)
                case StartEngine():
                    self._start(command)
                case StopEngine(residency, cuts_requests):
                    self._stop(self._engines.get(residency), cuts_requests=cuts_requests)
                case WakeAt(at):
                    self._wake_at(at)
                case PublishDecision(decision):
                    self.totals.count_unload(decision)
        self._check()

    def _wake_at(self, instant: float) -> None:
        self._timer += 1
        number = self._timer

        def fire() -> None:
            if number == self._timer:
                self.send(events.TimerFired(self.queue.now))

        if instant < math.inf:
            self.queue.at(instant, fire)

    def _check(self) -> None:
        if self.timeline is None:
            return
        invariants.check(self.scheduler.state)
        for ticket in self.scheduler.state.tickets:
            client = self.clients[ticket]
            if client.outcome is not None or client.granted_at is not None:
                raise ContractViolation(f"{client} has ended and still waits")
            if self.queue.now > client.deadline + 1:
                raise ContractViolation(f"{client} waits on, past its deadline")

    # Engines

    def _start(self, command: StartEngine) -> None:
        model = self.models[command.model]
        wanted = {s.device.id: round(s.parts.total * model.truth) for s in command.placement.used_shares}
        copies = self.scheduler.state.models[model.name].all_copies
        for other in self._engines_of.get(model.name, ()):
            copy = next((each for each in copies if other.residency in each.residencies), None)
            ends = copy is not None and other.residency in copy.leaving | copy.aside
            others = copy and (command.residency not in copy.residencies or ends)
            if not copy or not (others or copy.successor == command.residency):
                raise ContractViolation(f"{model.name} is started while it has engine #{other.residency}")
        for other in (other for device in wanted for other in self._engines_on.get(device, ())):
            if other.loading and not (other.asked_to_end or other.gone):
                raise ContractViolation(f"{model.name} is started where {other.model.name} is loading")
        engine = self._engines[command.residency] = SimulatedEngine(command.residency, model, wanted)
        for known in self._lists_with(engine):
            known.append(engine)
        self.totals.load(model.name, sum(wanted.values()))
        slowed = self._rng.uniform(*_SLOW) if self._happens(self.faults.slow_load) else 1.0
        load_s = model.load_s * self._rng.lognormvariate(0, _LOAD_SPREAD) * slowed
        self.queue.after(load_s * self._rng.uniform(0.05, 0.9), lambda: self._allocates(engine))
        if self._happens(self.faults.failed_load):
            self.queue.after(load_s * self._rng.random(), lambda: self._fails(engine, "it failed to load"))
        self.queue.after(load_s, lambda: self._becomes_ready(engine))

    def _lists_with(self, engine: SimulatedEngine) -> Iterator[list[SimulatedEngine]]:
        """Yield the lists that an engine belongs to while it runs: of its model, and of its devices."""
        yield self._engines_of.setdefault(engine.model.name, [])
        for device in engine.wanted:
            yield self._engines_on.setdefault(device, [])

    def _allocates(self, engine: SimulatedEngine) -> None:
        if engine.loading and not engine.gone and not self.machine.take(engine.residency, engine.wanted):
            self.totals.out_of_memory += 1
            self._ends(engine, "out of memory")

    def _becomes_ready(self, engine: SimulatedEngine) -> None:
        if engine.gone or engine.asked_to_end:
            return
        engine.loading = False
        engine.ready_at = self.queue.now
        self.send(events.EngineReady(self.queue.now, engine.residency))
        if self._happens(self.faults.death):
            life_s = self._rng.expovariate(1 / _LIFE_S)
            self.queue.after(life_s, lambda: self._fails(engine, "killed by signal 9"))
        if self._happens(self.faults.hang):
            self.queue.after(self._rng.expovariate(1 / _LIFE_S), lambda: self._hangs(engine))

    def _fails(self, engine: SimulatedEngine, why: str) -> None:
        if self.faults != NO_FAULTS:
            self._ends(engine, why)

    def _hangs(self, engine: SimulatedEngine) -> None:
        """Have it serve no more, until it is noticed and killed."""
        if self.faults != NO_FAULTS and not engine.gone:
            engine.hung = True
            self.queue.after(self._rng.uniform(*_HUNG_S), lambda: self._ends(engine, "it hung"))

    def _stop(self, engine: SimulatedEngine | None, *, cuts_requests: bool) -> None:
        if engine is None or engine.gone:
            # Its exit is already on the way to the scheduler.
            return
        lost = self.machine.missing & engine.wanted.keys()
        if engine.leases and not (lost or cuts_requests):
            raise ContractViolation(f"{engine.model.name} is stopped while {len(engine.leases)} are served")
        engine.asked_to_end = True
        slow = self._happens(self.faults.slow_end)
        end_s = self._rng.uniform(*(_SLOW_END_S if slow else _END_S)) * min(1.0, engine.model.load_s)
        self.queue.after(end_s, lambda: self._ends(engine, "stopped"))

    def _ends(self, engine: SimulatedEngine, why: str) -> None:
        """End the process; its requests fail before or after the scheduler learns of the exit."""
        if engine.gone:
            return
        engine.gone = True
        if engine.ready_at is not None:
            self._count_ready_time(engine, engine.ready_at)
        self._give_back_memory(engine)
        heard_first = self._rng.random() < 0.5
        if heard_first:
            self._exits(engine, why)
        for lease in [*engine.leases]:
            self._release(engine, lease, Outcome.BROKEN)
        if not heard_first:
            self._exits(engine, why)

    def _exits(self, engine: SimulatedEngine, why: str) -> None:
        del self._engines[engine.residency]
        for known in self._lists_with(engine):
            known.remove(engine)
        self.send(events.EngineExited(self.queue.now, engine.residency, why))

    def _count_ready_time(self, engine: SimulatedEngine, ready_at: float) -> None:
        if engine.leases:
            engine.busy_s += self.queue.now - engine.busy_since
            engine.busy_since = self.queue.now
        ready_s = self.queue.now - ready_at
        self.totals.was_ready(engine.model.name, engine.model.bytes, ready_s, engine.busy_s)

    def final_totals(self) -> Totals:
        """Count the engines that still run, and return the totals."""
        for engine in self._engines.values():
            if engine.ready_at is not None:
                self._count_ready_time(engine, engine.ready_at)
        return self.totals

    def _give_back_memory(self, engine: SimulatedEngine) -> None:
        self.machine.end(engine.residency)
        reports = self.machine.driver is not Driver.NOTHING
        if reports and self._happens(self.faults.lost_memory):
            later_s = self._rng.uniform(*_LOST_MEMORY_S)
        elif reports and self._happens(self.faults.late_memory):
            later_s = self._rng.uniform(*_LATE_MEMORY_S)
        else:
            self.machine.give_back(engine.residency)
            return
        self.queue.after(later_s, lambda: self.machine.give_back(engine.residency))

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._rng.random() < chance
