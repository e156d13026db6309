"""The state of the scheduler. Only the modules of this folder change it."""

import math
from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import UnknownModel
from cotenant.domain.residencies import LeaseId, ResidencyId, ResidencyState, TicketId
from cotenant.planning.ledger import Ledger
from cotenant.scheduling.commands import Command, PublishDecision
from cotenant.scheduling.demand import GapHistogram
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.model_state import ModelState, Reservation, Ticket
from cotenant.scheduling.policy import Policy
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.tracking.changes import Changes
from cotenant.scheduling.tracking.deadlines import Deadlines

_RECENT_WAITS: Final = 200
_OVERDUE_TIMES: Final = 3.0


@dataclass(frozen=True, slots=True)
class ActiveAdvice:
    """The advice in force for a model: each part until an instant, 0 if there is none.

    A factor on its keep-alive, a soft pin (others are evicted first), a load before any request.
    """

    factor: float = 1.0
    factor_until: float = 0.0
    pinned_until: float = 0.0
    prefetch_until: float = 0.0

    @property
    def ends_at(self) -> float | None:
        """When the first of its parts ends; None if none is in force."""
        instants = (self.factor_until, self.pinned_until, self.prefetch_until)
        return min((instant for instant in instants if instant), default=None)


@dataclass(slots=True)
class Guest:
    """A lease of memory: how long it lasts, None for no limit, and when it ends, once it is granted.

    `over_bytes` is what it was last seen to hold beyond the lease.
    """

    lasts_s: float | None
    ends_at: float | None = None
    over_bytes: int = 0


@dataclass(slots=True)
class State:
    """The whole state of the scheduler; `awaiting_room` says that a model waits for memory.

    `guests` are the leases of memory, by name; `models` has them too. `changed_at` is when models or
    devices were last added or removed. `unload_s` is how long the last unload took, until its memory was
    seen free. `by_state` are the ids of the residencies, `idle` those that nothing uses, the longest idle
    first. `deadlines` are those of tickets, `keep_alives` those of idle models, `reclaims` when claims of
    gone engines end at the latest, `advice_ends` those of advice by model. `touched` are the devices where
    something has changed for models that wait for room, `resized` those where their room itself may have:
    that is all that matters to one that waits for a load. `copied` are the models that may have several
    copies.
    """

    settings: SchedulerSettings
    ledger: Ledger
    policy: Policy
    models: dict[str, ModelState] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    copied: dict[str, ModelState] = field(default_factory=dict)
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
    idle: dict[ResidencyId, None] = field(default_factory=dict)
    step: int = 0
    touched: Changes = field(default_factory=Changes)
    resized: Changes = field(default_factory=Changes)
    deadlines: Deadlines[TicketId] = field(init=False)
    keep_alives: Deadlines[ResidencyId] = field(init=False)
    reclaims: Deadlines[ResidencyId] = field(init=False)
    advice_ends: Deadlines[str] = field(init=False)
    _asked_for: set[str] = field(default_factory=set)
    _later: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.deadlines = Deadlines(self._deadline_of)
        self.keep_alives = Deadlines(self._keep_alive_end_of)
        self.reclaims = Deadlines(self._reclaim_end_of)
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

    def is_victim(self, residency: ResidencyId) -> bool:
        """Whether a residency makes room for a reservation."""
        return any(residency in reservation.victims for reservation in self.reservations.values())

    def residency_of(self, model: ModelState) -> Residency | None:
        """Return the residency of a model, if it has one."""
        return None if model.residency is None else self.residencies[model.residency]

    def touch(self, devices: Iterable[DeviceId], *, resized: bool = True) -> None:
        """Record that something has changed on devices which matters for models that wait for room.

        Unless it is `resized`, only what may be evicted there has.
        """
        for device in devices:
            self.touched.note(device, self.step)
            if resized:
                self.resized.note(device, self.step)

    def take_changes(self) -> None:
        """Begin a step: record what has changed in the ledger since the last one."""
        self.touch(self.ledger.changed)
        self.ledger.changed.clear()
        self.step += 1

    def want(self, model: ModelState, why: str) -> None:
        """Have a model loaded though no request waits."""
        model.wanted, model.tried = why, None
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
        self.copied.pop(name, None)
        self.advised.pop(name, None)

    def cold_and_wanted(self) -> list[ModelState]:
        """Return the models that should be loaded and have no residency."""
        models = self.models
        asked = [model for name in self._asked_for if (model := models.get(name)) is not None]
        found = [model for model in asked if model.residency is None and (model.queue or model.wanted)]
        if len(found) < len(self._asked_for):
            self._asked_for = {model.spec.name for model in found}
        return found

    def models_await_room(self) -> bool:
        """Whether a model waits for room that is not just another copy of one that is served."""
        return bool(self.reservations) or any(not model.is_extra for model in self.cold_and_wanted())

    def drains(self, reservation: Reservation) -> bool:
        """Whether a reservation waits for requests of its victims to end."""
        draining = self.by_state[ResidencyState.DRAINING]
        return reservation.drains or not reservation.victims.isdisjoint(draining)

    def draining(self) -> list[Reservation]:
        """Return the reservations that wait for requests of their victims to end."""
        reservations = self.reservations.values()
        if self.by_state[ResidencyState.DRAINING]:
            return [each for each in reservations if self.drains(each)]
        return [each for each in reservations if each.drains]

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
        if model.copy_of is not None:
            model = model.copy_of
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
        if not residency.idle or stays or model.whole.queue or keep is None or math.isinf(keep):
            return None
        return self.last_used(model) + keep

    def last_used(self, model: ModelState) -> float:
        """Return when a copy was last used: of those that come and go with the model, when the model was."""
        whole = model.whole
        return whole.last_used if model.copy <= whole.spec.copies.least else model.last_used

    def watch_keep_alive(self, model: ModelState) -> None:
        """Note the end of the keep-alive of a model's copies, which may be new, or earlier than it was."""
        for copy in model.all_copies:
            if copy.residency is not None:
                due = self.keep_alive_ends_at(self.residencies[copy.residency])
                if due is not None:
                    self.keep_alives.watch(copy.residency, due)

    def _keep_alive_end_of(self, residency: ResidencyId) -> float | None:
        found = self.residencies.get(residency)
        return None if found is None else self.keep_alive_ends_at(found)

    def _reclaim_end_of(self, residency: ResidencyId) -> float | None:
        found = self.residencies.get(residency)
        if found is None or found.ended_at is None:
            return None
        return found.ended_at + self.settings.reclaim_bound_s

    def _advice_end_of(self, name: str) -> float | None:
        active = self.advised.get(name)
        return None if active is None else active.ends_at

    def _deadline_of(self, ticket: TicketId) -> float | None:
        found = self.tickets.get(ticket)
        return None if found is None else found.deadline

    def loaded_count(self) -> int:
        """Count the models that are loaded or loading, and those with a reservation.

        A reservation takes the places of its victims, also while they drain. A model that takes no memory,
        since it is served elsewhere, does not count, nor does a guest, and one that moves counts once, as
        does one on a node that is silent, and one with several copies.
        """
        loaded = {
            r.id
            for r in self.residencies.values()
            if r.bytes_by_device and not (r.gone or r.guest) and self._counts(r)
        }
        victims = {name: each.victims & loaded for name, each in self.reservations.items()}
        takes_none = {name for name in victims if name in self.guests or self.models[name].copy_of}
        places = (max(name not in takes_none, len(each)) for name, each in victims.items())
        return len(loaded.difference(*victims.values())) + sum(places)

    def _counts(self, residency: Residency) -> bool:
        """Whether it is for this residency that its model counts as loaded."""
        model = self.models[residency.model]
        if model.copy_of is not None:
            return False
        if model.residency is not None or not model.aside or residency.model in self.reservations:
            return model.residency == residency.id
        return residency.id == min(model.aside)

    def max_loaded_reached(self, by: ModelState | None = None) -> bool:
        """Whether no further model may be loaded unless another one is unloaded; `by` is the one to load.

        One that counts as loaded on a node that is silent takes no second place, nor does another copy.
        """
        most = self.settings.max_loaded
        if most is None or (by is not None and by.copy_of is not None):
            return False
        counts = by is not None and any(self._counts(self.residencies[each]) for each in by.aside)
        return self.loaded_count() - counts >= most

    def loading_devices(self) -> set[DeviceId]:
        """Return the devices on which a model is loading."""
        return {
            device
            for residency in self.by_state[ResidencyState.LOADING]
            for device in self.residencies[residency].bytes_by_device
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
        self._try_again(model)
        insort(model.queue, ticket)
        self.tickets[ticket.id] = ticket
        self.deadlines.watch(ticket.id, ticket.deadline)
        self._asked_for.add(model.spec.name)

    def _try_again(self, model: ModelState) -> None:
        """Have a model tried anew if that depends on who waits for it."""
        if not model.queue or (model.tried is not None and model.tried.again_at < math.inf):
            model.tried = None

    def dequeue(self, ticket: Ticket) -> None:
        """Remove a ticket from its queue: it has ended."""
        del self.tickets[ticket.id]
        model = self.models[ticket.model]
        model.queue.remove(ticket)
        self.watch_keep_alive(model)
        self._try_again(model)
        if not model.queue:
            for copy in model.all_copies:
                if copy.residency is not None:
                    self.touch(self.residencies[copy.residency].bytes_by_device, resized=False)


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
        """Queue the publication of a decision, with the numbers behind it.

        One about a further copy is about its model, and says which.
        """
        self._state.decisions += 1
        copy = None if model is None else self._state.models.get(model)
        if copy is not None and copy.copy_of is not None:
            model, text = copy.copy_of.spec.name, f"copy {copy.copy}: {text}"
            facts["copy"] = copy.copy
        decision = Decision(self._state.decisions, self.at, kind, model, text, self._cause, facts)
        self.commands.append(PublishDecision(decision))
