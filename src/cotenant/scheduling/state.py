"""The state of the scheduler. Only the modules of this folder change it."""

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import HOST_ID, DeviceId
from cotenant.domain.errors import UnknownModel
from cotenant.domain.exit_causes import Cause
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import LeaseId, ResidencyId, ResidencyState, TicketId, UnloadReason
from cotenant.planning.device_choice import Fit
from cotenant.planning.ledger import Ledger
from cotenant.scheduling.active_advice import ActiveAdvice
from cotenant.scheduling.commands import Command, PublishDecision
from cotenant.scheduling.deadlines import Deadlines
from cotenant.scheduling.demand import Demand, GapHistogram
from cotenant.scheduling.last_seen import LastSeen
from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.scheduling.policy import Policy
from cotenant.scheduling.reservation import Reservation

_RECENT_WAITS: Final = 200
_OVERDUE_TIMES: Final = 3.0


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A waiting request; sorts by priority, then age."""

    order: tuple[int, float, int]
    id: TicketId = field(compare=False)
    model: str = field(compare=False)
    at: float = field(compare=False)
    deadline: float = field(compare=False)
    keep_alive_s: float | None = field(compare=False, default=None)


@dataclass(slots=True)
class Residency:
    """A model on its devices.

    `last_seen` is the last measurement of each card that shows memory of the engine, or else the one at its
    end. `pending_unload` is why it is unloaded once it is idle. `leases` are those that are out, with the
    instants of their grants. `moved_from` names the devices where its model was, if a move started it.
    """

    id: ResidencyId
    model: str
    placement: Placement
    bytes_by_device: dict[DeviceId, int]
    state: ResidencyState
    since: float
    slots: int
    ready_at: float | None = None
    leases: dict[LeaseId, float] = field(default_factory=dict)
    unloading_at: float | None = None
    ended_at: float | None = None
    last_seen: dict[DeviceId, LastSeen] = field(default_factory=dict)
    measured_bytes: int | None = None
    pending_unload: tuple[UnloadReason, str] | None = None
    moved_from: str | None = None

    @property
    def in_flight(self) -> int:
        """How many requests use it now."""
        return len(self.leases)

    @property
    def bytes(self) -> int:
        """What it claims on its GPUs, or of host RAM if it has none."""
        return sum(self.bytes_by_device[device] for device in self.devices)

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """The devices that it runs on: host RAM only if it has no GPU."""
        gpus = tuple(device for device in self.bytes_by_device if device != HOST_ID)
        return gpus or tuple(self.bytes_by_device)

    @property
    def held_since(self) -> float:
        """When its engine became ready, or else when its load began."""
        return self.since if self.ready_at is None else self.ready_at

    @property
    def gone(self) -> bool:
        """Whether its engine is stopping or gone."""
        return self.state in (ResidencyState.UNLOADING, ResidencyState.RECLAIMING)

    @property
    def idle(self) -> bool:
        """Whether it is ready and nothing uses it."""
        return self.state is ResidencyState.READY and self.in_flight == 0


@dataclass(slots=True)
class ModelState:
    """A model, its waiting requests and its history.

    `wanted` is why it is to be loaded though no request waits; empty if it is not. `wanted_later` is the
    same for one that does not fit now, and is wanted again with the next Reading. `service_s` is how long its
    requests usually take, None before the first has ended. `fit` is the spec's, or where it goes instead.
    `evicted_for` is who needed its room last.
    `residency` serves it. While it moves, `successor` loads elsewhere to take over, and those `leaving` have
    served or were to: they end. A drained device moves it again at `move_again_at`.
    """

    spec: ModelSpec
    fit: Fit
    pinned: bool
    demand: Demand = field(default_factory=Demand)
    queue: list[Ticket] = field(default_factory=list)
    residency: ResidencyId | None = None
    successor: ResidencyId | None = None
    leaving: set[ResidencyId] = field(default_factory=set)
    move_failures: int = 0
    move_again_at: float = 0.0
    wanted: str = ""
    wanted_later: str = ""
    load_s: float = 0.0
    service_s: float | None = None
    loads: int = 0
    failures: int = 0
    retry_at: float = 0.0
    last_failure: str | None = None
    last_cause: Cause | None = None
    last_used: float = 0.0
    evicted_for: str | None = None
    keep_alive_s: float | None = None
    removed: bool = False
    last_waiting_text: str = ""

    @property
    def cold_and_wanted(self) -> bool:
        """Whether it should be loaded and has no residency."""
        return self.residency is None and bool(self.queue or self.wanted)

    @property
    def stays_as(self) -> ResidencyId | None:
        """The residency that it has once it has moved."""
        return self.residency if self.successor is None else self.successor

    @property
    def others(self) -> set[ResidencyId]:
        """Its residencies besides the one that serves it."""
        return self.leaving if self.successor is None else {self.successor, *self.leaving}

    @property
    def residencies(self) -> set[ResidencyId]:
        """All of its residencies."""
        return self.others if self.residency is None else {self.residency, *self.others}

    @property
    def stays(self) -> bool:
        """Whether it is to stay loaded: its engine is replaced if it dies, without a request."""
        return (self.spec.preload or self.pinned) and not self.removed


@dataclass(slots=True)
class State:
    """The whole state of the scheduler; `awaiting_room` says that a model waits for memory.

    `changed_at` is when models or devices were last added or removed. `unload_s` is how long the last unload
    took, until its memory was seen free. `by_state` are the ids of the residencies. `deadlines` are
    those of tickets, `keep_alives` the ends of those of idle models, `advice_ends` those of advice by model.
    """

    settings: SchedulerSettings
    ledger: Ledger
    policy: Policy
    models: dict[str, ModelState] = field(default_factory=dict)
    residencies: dict[ResidencyId, Residency] = field(default_factory=dict)
    leases: dict[LeaseId, ResidencyId] = field(default_factory=dict)
    tickets: dict[TicketId, Ticket] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    all_gaps: GapHistogram = field(default_factory=GapHistogram)
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_WAITS))
    overcommitted: set[DeviceId] = field(default_factory=set)
    crowded: set[DeviceId] = field(default_factory=set)
    advised: dict[str, ActiveAdvice] = field(default_factory=dict)
    changed_at: float = 0.0
    unload_s: float = 0.0
    drain_credit_s: float = 0.0
    drain_credit_at: float = 0.0
    stopping: bool = False
    awaiting_room: bool = False
    ids: int = 0
    decisions: int = 0
    by_state: dict[ResidencyState, set[ResidencyId]] = field(
        default_factory=lambda: {state: set() for state in ResidencyState}
    )
    deadlines: Deadlines[TicketId] = field(init=False)
    keep_alives: Deadlines[ResidencyId] = field(init=False)
    advice_ends: Deadlines[str] = field(init=False)
    _asked_for: set[str] = field(default_factory=set)
    _later: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.deadlines = Deadlines(self._deadline_of)
        self.keep_alives = Deadlines(self._keep_alive_end_of)
        self.advice_ends = Deadlines(self._advice_end_of)

    def next_id(self) -> int:
        """Return a number never used before."""
        self.ids += 1
        return self.ids

    def model(self, name: str) -> ModelState:
        """Return a model by name. Raises UnknownModel."""
        found = self.models.get(name)
        if found is None or found.removed:
            raise UnknownModel(f"the model {name!r} is not served")
        return found

    def residency_of(self, model: ModelState) -> Residency | None:
        """Return the residency of a model, if it has one."""
        return None if model.residency is None else self.residencies[model.residency]

    def want(self, model: ModelState, why: str) -> None:
        """Have a model loaded though no request waits."""
        model.wanted = why
        self._asked_for.add(model.spec.name)

    def want_later(self, model: ModelState, why: str) -> None:
        """Have a model that does not fit now loaded when it may: it is wanted again with the next Reading."""
        model.wanted_later = why
        self._later.add(model.spec.name)

    def want_again(self) -> None:
        """Want the models that were to be loaded later and are not."""
        for name in [*self._later]:
            model = self.models.get(name)
            if model is not None and model.wanted_later and model.residency is not None:
                continue
            self._later.discard(name)
            if model is not None and model.wanted_later:
                self.want(model, model.wanted_later)
                model.wanted_later = ""

    def advise(self, name: str, active: ActiveAdvice) -> None:
        """Have advice in force for a model, in place of what was."""
        end = active.ends_at
        if end is None:
            self.advised.pop(name, None)
            return
        self.advised[name] = active
        self.advice_ends.watch(name, end)

    def end_prefetch(self, name: str) -> None:
        """Have no advice to load a model before its requests: it is being loaded."""
        active = self.advised.get(name)
        if active is not None and active.prefetch_until:
            self.advise(name, replace(active, prefetch_until=0.0))

    def forget_model(self, name: str) -> None:
        """Drop a model that is not served any more, and advice for it."""
        del self.models[name]
        self.advised.pop(name, None)

    def cold_and_wanted(self) -> list[ModelState]:
        """Return the models that should be loaded and have no residency."""
        found = []
        for name in [*self._asked_for]:
            model = self.models.get(name)
            if model is not None and model.cold_and_wanted:
                found.append(model)
            else:
                self._asked_for.discard(name)
        return found

    def became_cold(self, model: ModelState) -> None:
        """Record that a model has no residency any more; it may be asked for."""
        model.residency = None
        self._asked_for.add(model.spec.name)

    def in_state(self, *states: ResidencyState) -> list[Residency]:
        """Return the residencies in one of these states, the oldest first."""
        found = sorted(residency for state in states for residency in self.by_state[state])
        return [self.residencies[residency] for residency in found]

    def keep_alive_s(self, model: ModelState) -> float | None:
        """Return how long a model stays after its last request; None for ever.

        Advice does not change the keep-alive that a client sent with its request.
        """
        if model.keep_alive_s is not None:
            return model.keep_alive_s
        keep = model.spec.keep_alive_s
        active = self.advised.get(model.spec.name)
        return keep if keep is None or active is None else keep * active.factor

    def keep_alive_ends_at(self, residency: Residency) -> float | None:
        """Return when an idle model's keep-alive expires; None if it does not."""
        model = self.models[residency.model]
        keep = self.keep_alive_s(model)
        stays = model.pinned or model.successor is not None
        if not residency.idle or stays or model.queue or keep is None or math.isinf(keep):
            return None
        return model.last_used + keep

    def watch_keep_alive(self, model: ModelState) -> None:
        """Note the end of a model's keep-alive, which may be new, or earlier than it was."""
        if model.residency is not None:
            due = self.keep_alive_ends_at(self.residencies[model.residency])
            if due is not None:
                self.keep_alives.watch(model.residency, due)

    def _keep_alive_end_of(self, residency: ResidencyId) -> float | None:
        found = self.residencies.get(residency)
        return None if found is None else self.keep_alive_ends_at(found)

    def _advice_end_of(self, name: str) -> float | None:
        active = self.advised.get(name)
        return None if active is None else active.ends_at

    def _deadline_of(self, ticket: TicketId) -> float | None:
        found = self.tickets.get(ticket)
        return None if found is None else found.deadline

    def loaded_count(self) -> int:
        """Count the models that are loaded or loading, and those with a reservation.

        A reservation takes the places of its victims, also while they drain. A model that takes no memory,
        since it is served elsewhere, does not count, and one that moves counts once.
        """
        loaded = {
            r.id
            for r in self.residencies.values()
            if r.bytes_by_device and not r.gone and self.models[r.model].residency == r.id
        }
        victims = [reservation.victims & loaded for reservation in self.reservations.values()]
        return len(loaded.difference(*victims)) + sum(max(1, len(each)) for each in victims)

    def max_loaded_reached(self) -> bool:
        """Whether no further model may be loaded unless another one is unloaded."""
        most = self.settings.max_loaded
        return most is not None and self.loaded_count() >= most

    def loading_devices(self) -> set[DeviceId]:
        """Return the devices on which a model is loading."""
        return {
            device
            for residency in self.in_state(ResidencyState.LOADING)
            for device in residency.bytes_by_device
        }

    def overdue_after_s(self) -> float:
        """Return how long a request may wait before it counts as overdue.

        Bounded, since waits grow under overload: without a bound no request would ever become overdue.
        """
        if len(self.waits) < _RECENT_WAITS:
            return self.settings.overdue_s
        usual = _OVERDUE_TIMES * sorted(self.waits)[int(0.95 * len(self.waits))]
        return min(max(self.settings.overdue_s, usual), _OVERDUE_TIMES * self.settings.overdue_s)

    def enqueue(self, model: ModelState, ticket: Ticket) -> None:
        """Insert a ticket into its queue."""
        insort(model.queue, ticket)
        self.tickets[ticket.id] = ticket
        self.deadlines.watch(ticket.id, ticket.deadline)
        self._asked_for.add(model.spec.name)

    def dequeue(self, ticket: Ticket) -> None:
        """Remove a ticket from its queue: it has ended."""
        del self.tickets[ticket.id]
        model = self.models[ticket.model]
        model.queue.remove(ticket)
        self.watch_keep_alive(model)


class Outbox:
    """Collects the commands of one step, and numbers its decisions."""

    def __init__(self, state: State, at: float, cause: str) -> None:
        self._state = state
        self._cause = cause
        self.at = at
        self.commands: list[Command] = []

    def add(self, command: Command) -> None:
        """Queue a command for the shell."""
        self.commands.append(command)

    def publish(self, kind: DecisionKind, model: str | None, text: str, **facts: float | int | str) -> None:
        """Queue the publication of a decision, with the numbers behind it."""
        self._state.decisions += 1
        decision = Decision(self._state.decisions, self.at, kind, model, text, self._cause, facts)
        self.commands.append(PublishDecision(decision))
