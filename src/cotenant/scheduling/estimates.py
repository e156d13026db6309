"""How long a request may have to wait: by what must happen first, and how long that usually takes."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heapify, heapreplace

from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import RefusalCode, ResidencyState
from cotenant.domain.units import format_count, format_duration
from cotenant.planning.eviction import freed_by
from cotenant.scheduling.copies.serving import serving
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.requests import refuse
from cotenant.scheduling.residence import evictable_from
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.room import Room
from cotenant.scheduling.state import Outbox, State


def wait_estimate(state: State, model: ModelState, now: float) -> WaitEstimate:
    """Return what the last request that waits for a model may expect; its ETA is None if it is unknown."""
    ready, usual_s = [*serving(state, model)], _service_s(model)
    residency = ready[0] if ready else state.residency_of(model)
    waits_for = _waits_for(state, model)
    ahead = max(0, len(model.queue) - 1)
    turns = ahead // model.spec.slots
    if residency is None:
        served_in, behind = _room_in(state, model, now)
        served_in, waits_for = served_in + model.load_s, waits_for + behind
    elif residency.state is ResidencyState.READY:
        served_in, turns = _slot_in(ready, usual_s, ahead, now), 0
    elif residency.state is ResidencyState.LOADING:
        served_in = _left(model.expected_load_s(residency.node), now - residency.since)
    else:
        served_in = state.unload_s + model.load_s if residency.gone else math.inf
    if turns:
        served_in += turns * usual_s
    return WaitEstimate(len(model.queue), served_in if math.isfinite(served_in) else None, waits_for)


def expire(state: State, out: Outbox) -> None:
    """Refuse the requests whose deadline has passed, saying what they waited for."""
    late = [state.tickets[each] for each in state.deadlines.pop_due(out.at)]
    models = {ticket.model: state.models[ticket.model] for ticket in late}
    waits_for = {name: wait_estimate(state, model, out.at).waits_for for name, model in models.items()}
    for ticket in late:
        text = f"waited {format_duration(out.at - ticket.at)} for {waits_for[ticket.model]}"
        refuse(state, [ticket], RefusalCode.TIMED_OUT, text, out)


def _waits_for(state: State, model: ModelState) -> str:
    """Return as text what the waiting requests of a model need."""
    residency = next(serving(state, model), None) or state.residency_of(model)
    reservation = state.reservations.get(model.spec.name)
    if residency is not None:
        waits = {
            ResidencyState.LOADING: "the model to be loaded",
            ResidencyState.READY: "a free slot",
            ResidencyState.DRAINING: "the model to be free again",
        }
        return waits.get(residency.state, "the model's last engine to be gone")
    if reservation is not None:
        victims = ", ".join(sorted(state.residencies[victim].model for victim in reservation.victims))
        return f"room, which {victims} is giving up" if victims else "its turn to be loaded"
    return "; ".join(("room on a GPU", *state.ledger.full()))


def _left(usual_s: float, ran_s: float) -> float:
    """Return what is left of something: if it took longer than usual, half as long again."""
    return max(usual_s - ran_s, ran_s / 2)


def _service_s(model: ModelState) -> float:
    """Return what requests of a model usually take; infinite, as what is unknown here, before the first."""
    return math.inf if model.service_s is None else model.service_s


def _slot_in(ready: Sequence[Residency], usual_s: float, ahead: int, now: float) -> float:
    """Return when a slot of one of these is free for a request with so many `ahead`."""
    left = [_left(usual_s, now - since) for residency in ready for since in residency.leases.values()]
    left += [0.0] * (sum(residency.slots for residency in ready) - len(left))
    heapify(left)
    for _ in range(ahead):
        heapreplace(left, left[0] + usual_s)
    return left[0]


def _room_in(state: State, model: ModelState, now: float) -> tuple[float, str]:
    """Return when there is room for a cold model, and which requests go first as text."""
    reservation = state.reservations.get(model.spec.name)
    if reservation is not None:
        victims = [state.residencies[victim] for victim in reservation.victims]
        return max((_gone_in(state, victim, model, now) for victim in victims), default=0.0), _behind(victims)
    wanted = [other for other in state.cold_and_wanted() if other is not model and not other.is_extra]
    if isinstance(Room(state).choose(model), Placement):
        loading = state.in_state(ResidencyState.LOADING)
        left = (_left(state.models[each.model].whole.load_s, now - each.since) for each in loading)
        return max(left, default=0.0), ""
    others = [r for r in state.residencies.values() if r.bytes_by_device and not state.models[r.model].pinned]
    others.sort(key=lambda each: (_gone_in(state, each, model, now), each.id))

    def fits_without(count: int) -> bool:
        freed, leaving = freed_by(residency.bytes_by_device for residency in others[:count])
        return isinstance(Room(state, (), freed, leaving).choose(model), Placement)

    # What fits without some fits without more. Mostly few are enough, and of thousands not each is asked.
    fewer, enough = 0, 1
    while enough < len(others) and not fits_without(enough):
        fewer, enough = enough, 2 * enough
    counts = range(fewer + 1, min(enough, len(others)) + 1)
    found = bisect_left(counts, True, key=fits_without)
    if found == len(counts):
        return math.inf, ""
    first = others[: counts[found]]
    # Who else waits for room, or keeps a victim busy, may go first: that is not predicted.
    kept_busy = any(state.models[residency.model].whole.queue for residency in first)
    return math.inf if wanted or kept_busy else _gone_in(state, first[-1], model, now), _behind(first)


def _gone_in(state: State, residency: Residency, waiting: ModelState, now: float) -> float:
    """Return when a residency may be gone for a waiting model, with its memory free."""
    if residency.state is ResidencyState.RECLAIMING or residency.state is ResidencyState.UNLOADING:
        return _left(state.unload_s, now - residency.since)
    if residency.state is ResidencyState.LOADING:
        return math.inf
    served_s = served_in_s(state, residency, now)
    if residency.state is ResidencyState.READY:
        served_s = max(served_s, evictable_from(state, residency, waiting) - now)
    return served_s + state.unload_s


def served_in_s(state: State, residency: Residency, now: float) -> float:
    """Return in how many seconds the requests of a residency should have ended."""
    usual_s = _service_s(state.models[residency.model].whole)
    return max((_left(usual_s, now - since) for since in residency.leases.values()), default=0.0)


def _behind(residencies: Iterable[Residency]) -> str:
    counts = Counter({residency.model: residency.in_flight for residency in residencies})
    named = [f"{format_count(count, 'request')} of {name}" for name, count in counts.items() if count]
    return f", behind {', '.join(named)}" if named else ""
