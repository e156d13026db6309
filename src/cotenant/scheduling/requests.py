"""Tickets and leases: which requests wait or are served, and how every wait ends."""

from collections.abc import Iterable
from typing import Final

from cotenant.domain.exit_causes import Cause
from cotenant.domain.residencies import LeaseId, RefusalCode, ResidencyState, TicketId
from cotenant.domain.units import format_count
from cotenant.scheduling.commands import Grant, Refuse
from cotenant.scheduling.copies.serving import in_flight, remember_conversation, serving, with_free_slot
from cotenant.scheduling.events import RequestArrived
from cotenant.scheduling.model_state import ModelState, Ticket
from cotenant.scheduling.residence import note_arrival
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.transitions import unload

_SERVICE_MEMORY: Final = 0.2


def arrive(state: State, event: RequestArrived, out: Outbox) -> None:
    """Queue a request, or refuse it at once. Raises UnknownModel."""
    model = state.model(event.model)
    if not model.queue and not in_flight(state, model):
        note_arrival(state, model, event.at)
    model.demand.arrive(event.at, state.all_gaps)
    refusal = _immediate_refusal(state, model, event.ticket, out.at)
    if refusal is not None:
        out.add(refusal)
        return
    order = (-event.priority, event.at, event.ticket)
    ticket = Ticket(
        order, event.ticket, event.model, event.at, event.deadline, event.keep_alive_s, event.conversation
    )
    state.enqueue(model, ticket)
    dispatch(state, model, out)


def dispatch(state: State, model: ModelState, out: Outbox) -> None:
    """Grant free slots to the first requests of the queue."""
    while model.queue:
        ticket = model.queue[0]
        residency = with_free_slot(state, model, ticket.conversation)
        if residency is None:
            return
        state.dequeue(ticket)
        state.waits.append(out.at - ticket.at)
        remember_conversation(model, ticket.conversation, residency)
        out.add(Grant(ticket.id, grant(state, model, residency, ticket.keep_alive_s, out.at), residency.id))


def grant(
    state: State, model: ModelState, residency: Residency, keep_alive_s: float | None, at: float
) -> LeaseId:
    """Grant one slot."""
    lease = LeaseId(state.next_id())
    state.leases[lease] = residency.id
    residency.leases[lease] = at
    state.idle.pop(residency.id, None)
    model.keep_alive_s = keep_alive_s
    return lease


def end_lease(state: State, residency: Residency, lease: LeaseId, at: float) -> None:
    """Free a slot, and learn how long the model's requests usually take."""
    model = state.models[residency.model]
    model.last_used, model.failures = at, 0
    if model.copy_of is not None:
        model = model.copy_of
        model.last_used = at
    took_s, known_s = at - residency.leases.pop(lease), model.service_s
    model.service_s = took_s if known_s is None else known_s + _SERVICE_MEMORY * (took_s - known_s)
    if residency.idle:
        state.idle[residency.id] = None


def released(state: State, lease: LeaseId, out: Outbox) -> None:
    """Return a slot to its residency; a lease whose engine died has ended already.

    An engine that has served a request is not in a crash loop: its next failure counts as the first.
    """
    holder = state.leases.pop(lease, None)
    if holder is None:
        return
    residency = state.residencies[holder]
    model = state.models[residency.model]
    end_lease(state, residency, lease, out.at)
    if residency.in_flight == 0 and residency.state is ResidencyState.DRAINING and residency.pending_unload:
        unload(state, residency, out, *residency.pending_unload)
    elif model.whole.queue:
        dispatch(state, model.whole, out)
    if residency.idle:
        state.touch(residency.bytes_by_device, resized=False)
    state.watch_keep_alive(model.whole)


def refuse(
    state: State,
    tickets: Iterable[Ticket],
    code: RefusalCode,
    text: str,
    out: Outbox,
    retry_after_s: float | None = None,
    cause: Cause | None = None,
) -> None:
    """End waits without a grant."""
    for ticket in [*tickets]:
        state.dequeue(ticket)
        out.add(Refuse(ticket.id, code, text, retry_after_s, cause))


def _immediate_refusal(state: State, model: ModelState, ticket: TicketId, now: float) -> Refuse | None:
    if state.stopping:
        return Refuse(ticket, RefusalCode.STOPPING, "the daemon is shutting down")
    if model.residency is None and model.retry_at > now and not any(serving(state, model)):
        failure = model.last_failure or "it could not be loaded"
        return Refuse(ticket, RefusalCode.LOAD_FAILED, failure, model.retry_at - now, model.last_cause)
    if len(model.queue) >= state.settings.max_queue:
        text = f"the queue of {model.spec.name} is full: {format_count(len(model.queue), 'request')}"
    elif len(state.tickets) >= state.settings.max_queue_total:
        text = f"the queue is full: {format_count(len(state.tickets), 'request')}"
    else:
        return None
    return Refuse(ticket, RefusalCode.QUEUE_FULL, text, max(1.0, model.load_s))
