"""Places cold models: in which order, on which devices, and which models are evicted for them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import DeviceId, is_host
from cotenant.domain.nodes import LoadCost, costs_text, missing_text
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import RefusalCode, ResidencyId
from cotenant.domain.units import format_duration
from cotenant.planning.device_needs import DeviceNeeds, Fit
from cotenant.planning.host_memory import placement_bytes
from cotenant.planning.machines import place_on_a_machine
from cotenant.scheduling.model_state import Attempt, ModelState, longest_wait_s
from cotenant.scheduling.requests import refuse
from cotenant.scheduling.reservations import cancel, drain_credit_s, end_reservation, reserve
from cotenant.scheduling.room import Room, never_fits, obstacles, on_emptied_host
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.tracking.changes import Changes
from cotenant.scheduling.transitions import start
from cotenant.scheduling.victims import Victims, VictimSearch

_COME_BACK_S: Final = 30.0
"""When a client may ask again for a model that does not fit now: how long others keep memory is unknown."""


@dataclass(slots=True)
class _Pass:
    """What the placements of one instant have in common."""

    state: State
    now: float
    overdue_after_s: float
    costs: dict[ResidencyId, float] = field(default_factory=dict)
    taken: set[DeviceId] = field(default_factory=set)
    _rooms: dict[bool, Room] = field(default_factory=dict)

    @classmethod
    def begin(cls, state: State, now: float) -> "_Pass":
        return cls(state, now, state.overdue_after_s())

    def is_overdue(self, model: ModelState) -> bool:
        return longest_wait_s(model, self.now) > self.overdue_after_s

    def room(self, *, with_loading: bool = False) -> Room:
        """Return what may be planned now, on devices `with_loading` models as well if so."""
        if with_loading not in self._rooms:
            busy = () if with_loading else self.state.loading_devices()
            self._rooms[with_loading] = Room(self.state, busy)
        return self._rooms[with_loading]

    def take(self, bytes_by_device: Mapping[DeviceId, int]) -> None:
        """Record that some of the room is taken now."""
        self.taken.update(bytes_by_device)
        self._rooms.clear()

    def may_drain(self) -> bool:
        draining = any(reservation.drains for reservation in self.state.reservations.values())
        return not draining and drain_credit_s(self.state, self.now) >= 1


def schedule(state: State, out: Outbox) -> None:
    """Start what fits, make room for what does not, refuse what never can.

    A model that was tried is tried again when something has changed that it could use.
    """
    state.take_changes()
    now = _Pass.begin(state, out.at)
    due = _in_order(now, state.cold_and_wanted())
    while due:
        for model in due:
            if not (model.is_extra and state.models_await_room()):
                _place(now, model, out)
        due = _overtaken(now)


def fulfil_reservations(state: State, out: Outbox) -> None:
    """Load models whose victims are gone; cancel if no one wants the model, or a drain takes too long."""
    limit_s = state.settings.drain_limit_s
    for name, reservation in [*state.reservations.items()]:
        if reservation.reload is not None:
            continue
        model = state.models[name]
        if state.stopping or model.residency is not None or not (model.queue or model.wanted):
            cancel(state, reservation, out)
        elif reservation.victims and reservation.at + limit_s <= out.at and state.drains(reservation):
            drained_s = out.at - reservation.at
            text = f"gave up draining after {format_duration(drained_s)}: it is tried again later"
            out.publish(DecisionKind.DRAIN, reservation.model, text)
            cancel(state, reservation, out)
        elif not reservation.victims:
            end_reservation(state, reservation, out)
            model.tried = None
            _place(_Pass.begin(state, out.at), model, out)


def choose_fits(state: State, models: Iterable[ModelState]) -> None:
    """Place models elsewhere while devices that they name are not there and they do not fit the rest."""
    present: list[Budget] | None = None
    for model in models:
        if model.copy_of is not None:
            continue
        spec, fit = model.spec, model.spec.fit
        names_devices = spec.elsewhere is not None or spec.allows is not None
        if (names_devices or spec.across is not None) and present is None:
            whole = state.ledger.whole()
            drained, silent = state.ledger.drained, state.ledger.silent
            present = [b for b in whole if b.device.id not in drained and b.device.node not in silent]
        if spec.elsewhere is not None and present is not None:
            elsewhere = spec.elsewhere([budget.device for budget in present])
            if elsewhere is not None and not isinstance(fit(present), Placement):
                fit = elsewhere
        model.allowed, model.tried, model.elsewhere = None, None, fit is not spec.fit
        if spec.allows is not None and present is not None and fit is spec.fit:
            model.allowed = tuple(budget.device.id for budget in present if spec.allows(budget.device))
        absent: dict[str | None, str] = {}
        absent |= {node: cost.why for node, cost in model.load_costs.items() if cost.seconds is None}
        model.over_machines = False
        if spec.across is not None and present is not None and fit is spec.fit:
            have_its_files = [budget for budget in present if budget.device.node not in absent]
            model.over_machines = isinstance(place_on_a_machine(have_its_files, fit), Refusal)
            fit = spec.across if model.over_machines else fit
        if spec.is_unclear and spec.is_unclear([r.device for r in state.ledger.readings.values()]):
            fit, model.allowed = _always(spec.fit(state.ledger.whole())), ()
        if absent:
            fit = _changed_on(absent, fit, _lends_only if model.over_machines else _left_out)
        if fit is not model.fit:
            model.needs = DeviceNeeds(fit)


def _changed_on(nodes: Mapping[str | None, str], fit: Fit, change: Callable[[Budget, str], Budget]) -> Fit:
    """Return a plan by budgets that are others on some nodes, for reasons."""

    def changed(budgets: Sequence[Budget]) -> Placement | Refusal:
        why = [nodes.get(budget.device.node) for budget in budgets]
        return fit(
            [
                budget if reason is None else change(budget, reason)
                for budget, reason in zip(budgets, why, strict=True)
            ]
        )

    return changed


def _left_out(budget: Budget, why: str) -> Budget:
    return replace(budget, budget_bytes=0, left_out=why)


def _lends_only(budget: Budget, why: str) -> Budget:
    return replace(budget, lends_only=why)


def _always(answer: Placement | Refusal) -> Fit:
    return lambda _: answer


def _overtaken(now: _Pass) -> list[ModelState]:
    """Return the models that waited for a load, and whose room after it has been given to others now."""
    taken, now.taken = now.taken, set()
    found = [
        model
        for model in (now.state.cold_and_wanted() if taken else ())
        if model.tried is not None and not taken.isdisjoint(model.tried.behind)
    ]
    for model in found:
        model.tried = None
    return _in_order(now, found)


def _in_order(now: _Pass, models: Iterable[ModelState]) -> list[ModelState]:
    """Return those that are to be tried: overdue ones first, then by waiting per load second."""

    def key(model: ModelState) -> tuple[int, int, float, str]:
        if model.is_extra:
            return 2, model.copy, -model.whole.demand.rate(now.now), model.spec.name
        wait = longest_wait_s(model, now.now)
        name = model.spec.name
        if wait > now.overdue_after_s:
            return 0, 0, -wait, name
        need = sum(now.now - ticket.at + 1 for ticket in model.queue) / max(model.load_s, 0.001)
        highest = min((ticket.order[0] for ticket in model.queue), default=0)
        return 1, highest, -need, name

    state = now.state
    cold = (
        model
        for model in models
        if not model.removed
        and model.retry_at <= now.now
        and model.spec.name not in state.reservations
        and _is_due(now, model)
    )
    return [] if state.stopping else sorted(cold, key=key)


def _is_due(now: _Pass, model: ModelState) -> bool:
    """Whether a model is to be tried: anew, or where something has changed since it was tried."""
    state, tried = now.state, model.tried
    if tried is None:
        return True
    overdue = now.is_overdue(model)
    if (
        state.settings.max_loaded is not None
        or tried.again_at <= now.now
        or tried.overdue is not overdue
        or (tried.for_drain and now.may_drain())
    ):
        model.tried = None
        return True
    return _changes_for(state, tried).any_since(tried.step)


def _changes_for(state: State, tried: Attempt) -> Changes:
    """Return the changes that matter to a model that was tried: one behind a load evicts nothing."""
    return state.resized if tried.behind else state.touched


def _place(now: _Pass, model: ModelState, out: Outbox) -> None:
    state, tried = now.state, model.tried
    among: list[DeviceId] | None = None
    if tried is not None:
        among = _changes_for(state, tried).since(tried.step)
        hosts = [device for device in among if is_host(device) and device not in state.ledger.readings]
        among = [device for device in among if device not in hosts]
        if hosts and tried.for_host:
            beside = [device for host in hosts for device in state.ledger.next_to(host)]
            among = None if len(state.ledger.hosts) < 2 else [*dict.fromkeys((*among, *beside))]
    if tried is not None and among is not None and not tried.behind.isdisjoint(among):
        among = None
    if tried is not None and among is not None:
        tried.step = state.step
        if not among or (tried.behind and not _could_fit(state, model, among)):
            return
        among = [device for device in among if device in state.ledger.readings]
    else:
        tried = Attempt(state.step, math.inf, now.is_overdue(model), bool(state.ledger.hosts))
        model.tried = tried
    crowded = not model.spec.guest and state.max_loaded_reached(model)
    room, nodes = now.room(), _nodes_of(state, among)
    now_free = room.choose(model, nodes)
    if isinstance(now_free, Placement) and not (crowded and placement_bytes(now_free)):
        why = model.wanted
        if model.queue:
            count, longest = len(model.queue), format_duration(longest_wait_s(model, out.at))
            why = f"{'1 request waits' if count == 1 else f'{count} requests wait'}, the first for {longest}"
        why += _where_it_loads(state, model, now_free.node)
        why += f"; {now_free.link_text}" if now_free.link_text else ""
        if model.whole.elsewhere:
            why += "; warning: it may not be on these devices, but those that it is for are not there"
        start(state, model, now_free, out, why)
        now.take(placement_bytes(now_free))
        return
    if tried.behind:
        return
    later = now.room(with_loading=True).choose(model, nodes) if room.busy and not crowded else None
    if isinstance(later, Placement):
        tried.behind = frozenset(placement_bytes(later))
        _publish_waiting(model, out, "waits for the load under way on its device")
        return
    if _make_room(now, model, tried, room, among, out, crowded=crowded):
        now.take(state.reservations[model.spec.name].bytes_by_device)
        return
    if model.copy_of is not None:
        _publish_waiting(model, out, "waits for room: what is loaded on its devices is in demand")
        return
    may_fit_still = among is not None and tried.hope and not {*tried.hope} & {*among}
    reason = None if may_fit_still else never_fits(state, model, tried)
    if reason and model.spec.guest and isinstance(model.fit(state.ledger.whole()), Placement):
        # A lease is waited for as long as its client says, whatever is in the way.
        reason = None
    if reason is not None:
        _refuse(state, model, reason, out)
    else:
        text = "waits for room: what is loaded is in use, pinned or likely to be used at once"
        _publish_waiting(model, out, "; ".join((text, *state.ledger.silent.values(), *state.ledger.full())))


def _where_it_loads(state: State, model: ModelState, node: str | None) -> str:
    """Return as a clause how soon a model loads on which machines, if that differs."""
    costs = _costs_here(state, model)
    if len({cost.seconds for cost in costs.values()}) < 2:
        return ""
    return f"; where its files are: {costs_text(costs, node)}"


def _costs_here(state: State, model: ModelState) -> dict[str, LoadCost]:
    """Return how soon a model loads on each machine that there is."""
    if not model.whole.load_costs:
        return {}
    there = state.ledger.devices.node_names()
    return {node: cost for node, cost in model.whole.load_costs.items() if node in there}


def _could_fit(state: State, model: ModelState, devices: Iterable[DeviceId]) -> bool:
    """Whether a model may fit on one of these devices or their machines: quick, and no only if it cannot."""
    ledger, rooms, single = state.ledger, state.ledger.rooms(), model.allowed is not None
    for device in devices:
        if device in ledger.readings:
            kind, node = ledger.devices.kind(device, single=single), ledger.readings[device].device.node
            if model.needs.fits(kind, rooms.room(ledger.devices.place(device))):
                return True
            room = rooms.of_nodes.total() if model.over_machines else rooms.of_nodes[node]
            if room >= model.needs.least_bytes(kind):
                return True
    return False


def _nodes_of(state: State, devices: Iterable[DeviceId] | None) -> list[tuple[DeviceId, ...]] | None:
    if devices is None:
        return None
    return [*{state.ledger.devices.node_of(device): None for device in devices}]


def _make_room(
    now: _Pass,
    model: ModelState,
    tried: Attempt,
    room: Room,
    among: Sequence[DeviceId] | None,
    out: Outbox,
    *,
    crowded: bool,
) -> bool:
    state = now.state
    search = VictimSearch(state, model, now.now, room, tried.overdue, crowded, among=among, costs=now.costs)
    found = search.find()
    tried.again_at = min(tried.again_at, search.again_at)
    if found is not None:
        if state.advised:
            plain = replace(search, advised=False, costs={})
            _publish_kept_by_advice(state, found, plain.find(), out)
        reserve(state, model, found, out, drains=False)
        return True
    tried.for_drain = False
    if not tried.overdue:
        return False
    if not now.may_drain():
        tried.for_drain = True
        return False
    found = replace(search, in_use=True).find()
    if found is None:
        return False
    state.drain_credit_s, state.drain_credit_at = drain_credit_s(state, out.at), out.at
    reserve(state, model, found, out, drains=True)
    return True


def _refuse(state: State, model: ModelState, reason: str, out: Outbox) -> None:
    """Refuse the requests of a model that does not fit, saying what is in its way and whether to come back.

    One that is to stay loaded is tried again with each Reading.
    """
    fit = model.spec.across or model.spec.fit
    bare = on_emptied_host(state, fit(state.ledger.whole(lost=True)), bare=True)
    again_s = None
    if isinstance(bare, Placement):
        reason, again_s = "; ".join((reason, *obstacles(state))), _COME_BACK_S
    elif state.settings.machines_come:
        again_s = _COME_BACK_S
    reason = "; ".join((reason, *missing_text(_costs_here(state, model))))
    text = f"{model.spec.name} does not fit: {reason}"
    if model.queue or model.last_failure != text:
        out.publish(DecisionKind.REFUSED, model.spec.name, f"does not fit: {reason}")
    later = model.wanted or model.wanted_later
    model.wanted, model.wanted_later = "", ""
    if later and model.stays:
        state.want_later(model, later)
    model.last_failure, model.last_cause = text, None
    refuse(state, model.queue, RefusalCode.DOES_NOT_FIT, text, out, again_s)


def _publish_waiting(model: ModelState, out: Outbox, text: str) -> None:
    if model.last_waiting_text != text:
        model.last_waiting_text = text
        out.publish(DecisionKind.WAITING, model.spec.name, text, queued=len(model.queue))


def _publish_kept_by_advice(state: State, victims: Victims, otherwise: Victims | None, out: Outbox) -> None:
    """Report which models advice has kept loaded, and which are evicted in their place."""
    gone = {victim.residency for victim in victims.candidates}
    names = ", ".join(sorted(state.residencies[residency].model for residency in gone))
    for candidate in otherwise.candidates if otherwise else ():
        if candidate.residency not in gone:
            kept = state.residencies[candidate.residency].model
            text = f"kept by the advisor: {names} is evicted in its place"
            out.publish(DecisionKind.ADVISED, kept, text, mattered=1)
