"""Places cold models: in which order, on which devices, and which models are evicted for them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import HOST_ID, DeviceId
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import RefusalCode, ResidencyState, UnloadReason
from cotenant.domain.units import format_count, format_duration
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.eviction import Candidate, cheapest_anywhere, cheapest_on_device, freed_by
from cotenant.planning.host_memory import on_host
from cotenant.scheduling.advice import soft_pinned_cost
from cotenant.scheduling.policy import Victim
from cotenant.scheduling.requests import refuse
from cotenant.scheduling.reservation import Reservation
from cotenant.scheduling.residence import evictable_from
from cotenant.scheduling.state import ModelState, Outbox, Residency, State
from cotenant.scheduling.transitions import placement_bytes, resume, start, unload_when_idle

_UNLIMITED: Final = 1 << 62
_TIE: Final = 1e-9
_COME_BACK_S: Final = 30.0
"""When a client may ask again for a model that does not fit now: how long others keep memory is unknown."""


def schedule(state: State, out: Outbox) -> None:
    """Start what fits, make room for what does not, refuse what never can."""
    for model in _in_order(state, out.at):
        _place(state, model, out)


def fulfil_reservations(state: State, out: Outbox) -> None:
    """Load models whose victims are gone; cancel if no one wants the model, or a drain takes too long."""
    for reservation in [*state.reservations.values()]:
        if reservation.reload is not None:
            continue
        model = state.models[reservation.model]
        drained_s = out.at - reservation.at
        if not model.cold_and_wanted or state.stopping:
            cancel(state, reservation, out)
        elif reservation.drains and reservation.victims and drained_s >= state.settings.drain_limit_s:
            text = f"gave up draining after {format_duration(drained_s)}: it is tried again later"
            out.publish(DecisionKind.DRAIN, reservation.model, text)
            cancel(state, reservation, out)
        elif not reservation.victims:
            end_reservation(state, reservation, out)
            _place(state, model, out)


def cancel(state: State, reservation: Reservation, out: Outbox) -> None:
    """End a reservation: busy victims admit requests again; those already unloading are unloaded."""
    end_reservation(state, reservation, out)
    for victim in reservation.victims:
        resume(state, state.residencies[victim], out.at)


def longest_wait_s(model: ModelState, now: float) -> float:
    """Return how long the longest waiting request has waited; 0 if none does."""
    return now - min((ticket.at for ticket in model.queue), default=now)


def drain_credit_s(state: State, now: float) -> float:
    """Return the seconds of draining that may be spent: a share of the time passed, up to one drain."""
    earned = (now - state.drain_credit_at) * state.settings.drain_share
    return min(state.settings.drain_limit_s, state.drain_credit_s + earned)


def choose_fits(state: State, models: Iterable[ModelState]) -> None:
    """Place models elsewhere while devices that they name are not there and they do not fit the rest."""
    present: list[Budget] | None = None
    for model in models:
        model.fit = model.spec.fit
        if model.spec.elsewhere is None:
            continue
        if present is None:
            drained = state.ledger.drained
            present = [each for each in state.ledger.whole() if each.device.id not in drained]
        elsewhere = model.spec.elsewhere([budget.device for budget in present])
        if elsewhere is not None and not isinstance(model.spec.fit(present), Placement):
            model.fit = elsewhere


def _in_order(state: State, now: float) -> list[ModelState]:
    """Return overdue models first, oldest first; then the others by waiting per second of load."""
    overdue_after = state.overdue_after_s()

    def key(model: ModelState) -> tuple[int, int, float, str]:
        wait = longest_wait_s(model, now)
        name = model.spec.name
        if wait > overdue_after:
            return 0, 0, -wait, name
        need = sum(now - ticket.at + 1 for ticket in model.queue) / max(model.load_s, 0.001)
        highest = min((ticket.order[0] for ticket in model.queue), default=0)
        return 1, highest, -need, name

    cold = (
        model
        for model in state.cold_and_wanted()
        if not model.removed and model.retry_at <= now and model.spec.name not in state.reservations
    )
    return [] if state.stopping else sorted(cold, key=key)


def _place(state: State, model: ModelState, out: Outbox) -> None:
    busy = state.loading_devices()
    crowded = state.max_loaded_reached()
    now_free = choose_now(state, model, busy)
    if isinstance(now_free, Placement) and not (crowded and placement_bytes(now_free)):
        why = model.wanted
        if model.queue:
            count, longest = len(model.queue), format_duration(longest_wait_s(model, out.at))
            why = f"{'1 request waits' if count == 1 else f'{count} requests wait'}, the first for {longest}"
        if model.fit is not model.spec.fit:
            why += "; warning: it may not be on these devices, but those that it is for are not there"
        start(state, model, now_free, out, why)
        return
    if not crowded and busy and isinstance(choose_now(state, model, set()), Placement):
        _publish_waiting(model, out, "waits for the load under way on its device")
        return
    if _make_room(state, model, out, busy, crowded=crowded):
        return
    reason = never_fits(state, model)
    if reason is not None:
        _refuse(state, model, reason, out)
    else:
        text = "waits for room: what is loaded is in use, pinned or likely to be used at once"
        _publish_waiting(model, out, "; ".join((text, *state.ledger.full())))


def choose_now(
    state: State,
    model: ModelState,
    busy: set[DeviceId],
    also_freed: Mapping[DeviceId, int] | None = None,
    also_leaving: Mapping[DeviceId, int] | None = None,
) -> Placement | Refusal:
    """Choose devices by the room that is free now, or with what is `also` freed, without what is reserved."""
    freed, leaving = reserved(state)
    freed.update(also_freed or {})
    leaving.update(also_leaving or {})
    budgets = state.ledger.budgets(freed=freed, leaving=leaving, busy=busy)
    chosen = choose_devices(model.fit, budgets, state.ledger.claimed_devices(), together=model.spec.together)
    return on_host(chosen, state.ledger.host_budget(freed))


def _make_room(state: State, model: ModelState, out: Outbox, busy: set[DeviceId], *, crowded: bool) -> bool:
    overdue = longest_wait_s(model, out.at) > state.overdue_after_s()
    candidates = [*_candidates(state, model, out.at, overdue, busy=False)]
    found = _victims(state, model, candidates, busy, crowded)
    if found is not None:
        if state.advised:
            plain = [*_candidates(state, model, out.at, overdue, busy=False, advised=False)]
            _publish_kept_by_advice(state, found[0], _victims(state, model, plain, busy, crowded), out)
        _reserve(state, model, *found, out, drains=False)
        return True
    if not overdue or drain_credit_s(state, out.at) < 1 or any(r.drains for r in state.reservations.values()):
        return False
    found = _victims(state, model, [*_candidates(state, model, out.at, overdue, busy=True)], busy, crowded)
    if found is None:
        return False
    state.drain_credit_s, state.drain_credit_at = drain_credit_s(state, out.at), out.at
    _reserve(state, model, *found, out, drains=True)
    return True


def _publish_kept_by_advice(
    state: State,
    victims: tuple[Candidate, ...],
    otherwise: tuple[tuple[Candidate, ...], Placement] | None,
    out: Outbox,
) -> None:
    """Report which models advice has kept loaded, and which are evicted in their place."""
    gone = {victim.residency for victim in victims}
    names = ", ".join(sorted(state.residencies[residency].model for residency in gone))
    for candidate in otherwise[0] if otherwise else ():
        if candidate.residency not in gone:
            kept = state.residencies[candidate.residency].model
            text = f"kept by the advisor: {names} is evicted in its place"
            out.publish(DecisionKind.ADVISED, kept, text, mattered=1)


def _candidates(
    state: State, waiting: ModelState, now: float, overdue: bool, *, busy: bool, advised: bool = True
) -> Iterator[Candidate]:
    """Yield residencies that may be evicted for a waiting model: idle ones, from their instant on.

    For an overdue request that instant does not count; with `busy`, those in use count as well.
    """
    taken = {victim for r in state.reservations.values() for victim in r.victims}
    for residency in state.residencies.values():
        model = state.models[residency.model]
        ready = residency.state is ResidencyState.READY and residency.bytes_by_device
        if not ready or model.pinned or model.successor is not None or residency.id in taken:
            continue
        in_use = residency.in_flight > 0 or bool(model.queue)
        if (in_use and not busy) or (not overdue and evictable_from(state, residency, waiting) > now):
            continue
        cost = eviction_cost(state, residency, now, advised=advised)
        cost += residency.in_flight + len(model.queue)
        yield Candidate(residency.id, cost, residency.bytes_by_device)


def eviction_cost(state: State, residency: Residency, now: float, *, advised: bool = True) -> float:
    """Return what evicting a residency costs by the policy; among equals the longest idle costs least.

    With `advised`, a soft pin of the advisor raises the cost.
    """
    model = state.models[residency.model]
    victim = Victim(residency.model, model.demand, model.load_s, residency.bytes, now, state.all_gaps)
    cost = state.policy(victim) + _TIE / (1 + max(0.0, now - model.last_used))
    return soft_pinned_cost(state, residency.model, now, cost) if advised else cost


def _victims(
    state: State, model: ModelState, candidates: list[Candidate], busy: set[DeviceId], crowded: bool
) -> tuple[tuple[Candidate, ...], Placement] | None:
    """Find the cheapest sufficient victims on one device, or else on several."""
    best: tuple[float, tuple[Candidate, ...], Placement] | None = None
    reserved_bytes, reserved_engines = reserved(state)
    for budget in state.ledger.budgets(busy=busy, any_number=True):
        if budget.left_out is not None:
            continue
        device = budget.device.id
        alone = model.fit([replace(budget, budget_bytes=_UNLIMITED)])
        if isinstance(alone, Refusal) or device not in placement_bytes(alone):
            continue
        free = state.ledger.available_bytes(device) + reserved_bytes[device]
        needed = placement_bytes(alone)[device] - free
        min_victims = state.ledger.engines_to_remove(device, leaving=reserved_engines[device])
        victims = cheapest_on_device(candidates, device, max(needed, 0), min_victims)
        if victims is not None and crowded and not victims:
            victims = _cheapest_one(candidates)
        if victims is None:
            continue
        freed, _ = freed_by(victim.bytes_by_device for victim in victims)
        freed.update(reserved_bytes)
        placement = on_host(
            model.fit([replace(budget, budget_bytes=free + max(0, needed))]),
            state.ledger.host_budget(freed),
        )
        cost = sum(victim.cost for victim in victims)
        if isinstance(placement, Placement) and (best is None or cost < best[0]):
            best = cost, victims, placement
    if best is not None:
        return best[1], best[2]

    def fits(victims: Sequence[Candidate]) -> Placement | None:
        freed, leaving = freed_by(victim.bytes_by_device for victim in victims)
        freed.update(reserved_bytes)
        leaving.update(reserved_engines)
        found = model.fit(state.ledger.budgets(freed=freed, leaving=leaving, busy=busy))
        result = on_host(found, state.ledger.host_budget(freed))
        return result if isinstance(result, Placement) else None

    found = cheapest_anywhere(candidates, fits)
    if found is None or found[0] or not crowded:
        return found
    one = _cheapest_one(candidates)
    return None if one is None else (one, found[1])


def _cheapest_one(candidates: list[Candidate]) -> tuple[Candidate] | None:
    """Return the cheapest victim on any device, to stay within the limit of loaded models."""
    return (min(candidates, key=lambda c: (c.cost, c.residency)),) if candidates else None


def _reserve(
    state: State,
    model: ModelState,
    victims: tuple[Candidate, ...],
    placement: Placement,
    out: Outbox,
    *,
    drains: bool,
) -> None:
    name = model.spec.name
    evicted = {victim.residency for victim in victims}
    needed = placement_bytes(placement)
    state.reservations[name] = Reservation(name, placement, needed, evicted, out.at, drains)
    waited = longest_wait_s(model, out.at)
    for victim in victims:
        residency = state.residencies[victim.residency]
        state.models[residency.model].evicted_for = name
        demand = state.models[residency.model].demand
        idle = out.at - state.models[residency.model].last_used
        rate = f"{demand.last_minute_rate(out.at):.2f} requests/s in the last minute"
        how = (
            f"idle {format_duration(idle)}"
            if residency.idle
            else f"{format_count(residency.in_flight, 'request')} in flight"
        )
        why = f"evicted: {how}, {rate}, for {name}, whose first request had waited {format_duration(waited)}"
        if not residency.idle:
            out.publish(DecisionKind.DRAIN, residency.model, f"admits no more requests: {why}")
        unload_when_idle(state, residency, out, UnloadReason.EVICTED, why)


def end_reservation(state: State, reservation: Reservation, out: Outbox) -> None:
    """Hold the room no longer; a drain costs the credit that it took."""
    del state.reservations[reservation.model]
    if reservation.drains:
        state.drain_credit_s = max(0.0, drain_credit_s(state, out.at) - (out.at - reservation.at))
        state.drain_credit_at = out.at


def reserved(state: State) -> tuple[Counter[DeviceId], Counter[DeviceId]]:
    """Return what reservations need beyond what their victims still hold: bytes and engines, as negatives."""
    reserved_bytes: Counter[DeviceId] = Counter()
    reserved_engines: Counter[DeviceId] = Counter()
    for reservation in state.reservations.values():
        victims = (state.residencies[victim].bytes_by_device for victim in reservation.victims)
        freed, leaving = freed_by(victims)
        for device, count in reservation.bytes_by_device.items():
            reserved_bytes[device] -= max(0, count - freed[device])
            reserved_engines[device] -= max(0, 1 - leaving[device])
    return reserved_bytes, reserved_engines


def never_fits(state: State, model: ModelState) -> str | None:
    """Return the planner's reason if the model does not fit even without all models that are not pinned."""
    pinned: list[Residency] = []
    others: list[Residency] = []
    for residency in state.residencies.values():
        # One that is moved has left its devices soon.
        model_of = state.models[residency.model]
        stays = model_of.pinned and not residency.gone and residency.id == model_of.stays_as
        (pinned if stays else others).append(residency)
    freed, leaving = freed_by(residency.bytes_by_device for residency in others)
    result = on_host(model.fit(_emptied(state, freed, leaving)), _emptied_host(state, freed))
    if isinstance(result, Placement):
        return None
    if not pinned:
        return result.reason
    names = ", ".join(sorted(residency.model for residency in pinned))
    reason = f"next to {names} (pinned): {result.reason}"
    full = state.ledger.full(leaving)
    return "; ".join((reason, *(text for text in full if text.partition(": ")[2] not in reason)))


def _refuse(state: State, model: ModelState, reason: str, out: Outbox) -> None:
    """Refuse the requests of a model that does not fit, saying what is in its way and whether to come back.

    One that is to stay loaded is tried again with each Reading.
    """
    bare = on_host(model.spec.fit(state.ledger.whole(lost=True)), _emptied_host(state, Counter(), bare=True))
    again_s = None
    if isinstance(bare, Placement):
        reason, again_s = "; ".join((reason, *state.ledger.obstacles())), _COME_BACK_S
    text = f"{model.spec.name} does not fit: {reason}"
    if model.queue or model.last_failure != text:
        out.publish(DecisionKind.REFUSED, model.spec.name, f"does not fit: {reason}")
    later = model.wanted or model.wanted_later
    model.wanted, model.wanted_later = "", ""
    if later and model.stays:
        state.want_later(model, later)
    model.last_failure, model.last_cause = text, None
    refuse(state, model.queue, RefusalCode.DOES_NOT_FIT, text, out, again_s)


def _emptied(state: State, freed: Counter[DeviceId], leaving: Mapping[DeviceId, int]) -> list[Budget]:
    """Return budgets without what is `freed`; Readings do not count, since they lag behind."""
    budgets = []
    for budget in state.ledger.budgets(leaving=leaving):
        reading = state.ledger.readings[budget.device.id]
        if budget.left_out is None:
            claimed = state.ledger.claimed_bytes(budget.device.id) - freed[budget.device.id]
            room = reading.capacity_bytes - state.ledger.foreign_bytes(budget.device.id) - claimed
            budget = replace(budget, budget_bytes=max(0, room - state.ledger.reserve_bytes))
        budgets.append(budget)
    return budgets


def _emptied_host(state: State, freed: Counter[DeviceId], *, bare: bool = False) -> Budget | None:
    budget, host = state.ledger.host_budget(freed), state.ledger.host
    if budget is None or host is None:
        return None
    room = host.capacity_bytes - state.ledger.reserve_bytes
    if not bare:
        claimed = state.ledger.claimed_bytes(HOST_ID) - freed[HOST_ID]
        room -= state.ledger.foreign_bytes(HOST_ID) + claimed
    return replace(budget, budget_bytes=max(0, room))


def _publish_waiting(model: ModelState, out: Outbox, text: str) -> None:
    if model.last_waiting_text != text:
        model.last_waiting_text = text
        out.publish(DecisionKind.WAITING, model.spec.name, text, queued=len(model.queue))
