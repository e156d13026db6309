"""Other machines: they fall silent, are lost, come back, and have engines that are taken over.

What a node that is lost holds can be given to nobody, so nothing is placed twice on the same memory. Its
models are loaded elsewhere as soon as it is silent, if somebody waits: two copies of a model harm nobody.
"""

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.exit_causes import Cause
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyId, ResidencyState, UnloadReason
from cotenant.domain.units import format_bytes, format_duration
from cotenant.planning.adoption import claim_running, why_no_claim
from cotenant.planning.host_memory import placement_bytes
from cotenant.scheduling.commands import AdoptEngine, DiscardEngine, ForgetEngine
from cotenant.scheduling.events import EngineFound, NodeBack, NodeLost, NodeSilent
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.moves import cancel_move, failed
from cotenant.scheduling.placing import choose_fits
from cotenant.scheduling.requests import dispatch
from cotenant.scheduling.reservations import cancel
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.room import reserved
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.transitions import (
    drop_leases,
    enter,
    forget,
    lower_claim,
    unload,
    unload_when_idle,
)


def silent(state: State, event: NodeSilent, out: Outbox) -> None:
    """Place nothing new on a node, and let its models be loaded elsewhere."""
    if event.node in state.ledger.silent:
        return
    why = event.why or f"node {event.node} has not answered for {format_duration(event.silent_s)}"
    state.ledger.silence(event.node, why)
    _cancel_reservations(state, event.node, why, out)
    here = _on(state, event.node)
    out.publish(DecisionKind.NODE, None, f"{why}: nothing new goes there", node=event.node, state="suspect")
    for residency in here:
        if not residency.guest:
            _step_aside(state, residency, why, out)
    _devices_changed(state, out)


def lost(state: State, event: NodeLost, out: Outbox) -> None:
    """Forget a node with its devices and all that ran there; requests that wait stay in line."""
    why = f"node {event.node} is lost: {event.why}"
    _cancel_reservations(state, event.node, why, out)
    for residency in _on(state, event.node):
        model = state.models[residency.model]
        served = residency.id == model.stays_as or residency.id in model.aside
        if any(node != event.node and state.ledger.devices_of(node) for node in residency.nodes):
            _end_rest(state, residency, why, out)
            if served and model.residency is None and model.stays and not state.stopping:
                state.want(model, f"node {event.node} is lost")
            continue
        if residency.id == model.successor:
            failed(state, residency, why, Cause.NODE_LOST, out)
        drop_leases(state, residency)
        forget(state, residency)
        if residency.state is not ResidencyState.RECLAIMING:
            out.add(ForgetEngine(residency.id, why))
        out.publish(
            DecisionKind.NODE, residency.model, f"was {residency.state} there: {why}", node=event.node
        )
        if model.removed and not (model.queue or model.residencies or model.copies):
            state.forget_model(residency.model)
        elif served and model.residency is None and model.stays and not state.stopping:
            state.want(model, f"node {event.node} is lost")
    state.ledger.silence(event.node, None)
    state.ledger.read((), event.node)
    if event.for_good:
        gone = [device for device, last in state.ledger.lost.items() if last.device.node == event.node]
        for device in gone:
            del state.ledger.lost[device]
    out.publish(DecisionKind.NODE, None, why, node=event.node, state="lost")
    _devices_changed(state, out)


def back(state: State, event: NodeBack, out: Outbox) -> None:
    """Use a node again: what is still known there serves, unless its model is served elsewhere by now."""
    out.publish(DecisionKind.NODE, None, f"node {event.node} answers", node=event.node, state="ready")
    if event.node not in state.ledger.silent:
        return
    state.ledger.silence(event.node, None)
    for residency in _on(state, event.node):
        answers = state.ledger.silent.keys().isdisjoint(residency.nodes)
        if answers and residency.id in state.models[residency.model].aside:
            _come_back(state, residency, out)
    _devices_changed(state, out)


def found(state: State, event: EngineFound, out: Outbox) -> None:
    """Take over an engine that runs already if its model can be served by it, else have it ended."""
    model = _adopting(state, event)
    held = placement_bytes(event.placement)
    why_not = _why_not_adopted(state, event, model, held)
    if model is None or why_not:
        out.add(DiscardEngine(event.engine, why_not))
        return
    residency = Residency(
        id=ResidencyId(state.next_id()),
        model=model.spec.name,
        placement=event.placement,
        bytes_by_device=held,
        state=ResidencyState.LOADING,
        since=out.at,
        slots=model.spec.slots,
        adopted=True,
    )
    state.residencies[residency.id] = residency
    state.by_state[ResidencyState.LOADING].add(residency.id)
    claim_running(state.ledger, residency.id, held)
    out.add(AdoptEngine(residency.id, event.model, event.placement, event.engine))
    where, size = event.placement.label, format_bytes(residency.bytes)
    text = f"taken over as it runs on {where}: {size}"
    out.publish(DecisionKind.LOAD, residency.model, text, bytes=residency.bytes)
    if not event.ready:
        model.residency = residency.id
        return
    # It has its bytes: the next Reading includes them.
    state.ledger.show(residency.id, out.at)
    residency.ready_at = out.at
    # When it was last asked is not known: it has its whole keep-alive.
    model.last_used = out.at
    _serve(state, residency, out)
    lower_claim(state, residency, model.spec.seen_bytes)


def became_ready_aside(state: State, residency: Residency, placement: Placement | None, out: Outbox) -> None:
    """Record that an engine is ready whose node is silent: it serves once that answers."""
    if placement is not None:
        residency.placement = placement
        state.ledger.change(residency.id, placement_bytes(placement))
    residency.ready_at = out.at
    state.ledger.show(residency.id, out.at)
    enter(state, residency, ResidencyState.SUSPENDED, out.at)


def _adopting(state: State, event: EngineFound) -> ModelState | None:
    """Return the model, or the copy of it, that could take over a found engine."""
    model = state.models.get(event.model)
    copies = [] if model is None else [(copy, state.residency_of(copy)) for copy in model.all_copies]
    cold = (copy for copy, residency in copies if residency is None)
    loading = (copy for copy, held in copies if held is not None and held.state is ResidencyState.LOADING)
    return next(cold, None) or next(loading, model)


def _why_not_adopted(
    state: State, event: EngineFound, model: ModelState | None, held: dict[DeviceId, int]
) -> str:
    """Return why a found engine cannot serve its model; empty if it can."""
    ledger = state.ledger
    if state.stopping:
        return "the daemon is shutting down"
    if model is None or model.whole.removed or model.spec.guest:
        return "it is not served"
    current = state.residency_of(model)
    if current is not None and not (event.ready and current.state is ResidencyState.LOADING):
        return "it is loaded elsewhere by now"
    if len(event.placement.nodes) > 1:
        return "its parts on other machines are not taken over"
    if event.placement.node in ledger.silent:
        return ledger.silent[event.placement.node]
    if current is None and state.max_loaded_reached(model):
        return "as many models are loaded as may be"
    return why_no_claim(ledger, held, reserved(state)[0])


def _on(state: State, node: str) -> list[Residency]:
    """Return the residencies on a node, those that take over first, else the oldest first."""
    here = [residency for residency in state.residencies.values() if node in residency.nodes]
    return sorted(here, key=lambda r: (r.id != state.models[r.model].successor, r.id))


def _step_aside(state: State, residency: Residency, why: str, out: Outbox) -> None:
    """Have a residency serve no more as long as its node is silent; its leases may end."""
    model = state.models[residency.model]
    if residency.id == model.successor:
        cancel_move(state, model, out, why)
    if residency.id != model.residency:
        return
    if residency.state is ResidencyState.READY:
        enter(state, residency, ResidencyState.SUSPENDED, out.at)
    model.aside.add(residency.id)
    state.became_cold(model)
    model.residency, model.successor = model.successor, None
    if model.residency is None:
        model.tried = None


def _end_rest(state: State, residency: Residency, why: str, out: Outbox) -> None:
    """End what a model has on other machines: without the part on a lost one it cannot serve."""
    model = state.models[residency.model]
    model.aside.discard(residency.id)
    if residency.id == model.residency:
        state.became_cold(model)
        model.tried = None
    model.leaving.add(residency.id)
    drop_leases(state, residency)
    out.publish(DecisionKind.NODE, residency.model, f"was {residency.state} there in part: {why}")
    if not residency.gone:
        unload(state, residency, out, UnloadReason.DEVICE_LOST, f"unloaded: {why}")


def _come_back(state: State, residency: Residency, out: Outbox) -> None:
    """Have a residency whose node answers again serve its model, or end."""
    model = state.models[residency.model]
    model.aside.discard(residency.id)
    current = state.residency_of(model)
    is_ready = residency.state is ResidencyState.SUSPENDED
    if residency.gone or residency.state is ResidencyState.DRAINING:
        model.leaving.add(residency.id)
    elif current is None and not is_ready:
        model.residency = residency.id
    elif is_ready and (current is None or current.state is ResidencyState.LOADING):
        _serve(state, residency, out)
    else:
        model.leaving.add(residency.id)
        why = "unloaded: its node answers again, and it is loaded elsewhere by now"
        unload_when_idle(state, residency, out, UnloadReason.MOVED, why)


def _serve(state: State, residency: Residency, out: Outbox) -> None:
    """Have a residency that can serve do so, in place of one that is only loading."""
    model = state.models[residency.model]
    current, model.residency = state.residency_of(model), residency.id
    enter(state, residency, ResidencyState.READY, out.at)
    if current is not None:
        model.leaving.add(current.id)
        why = f"unloaded: it is served from {residency.placement.label}"
        unload(state, current, out, UnloadReason.MOVED, why)
    model.wanted = ""
    dispatch(state, model.whole, out)


def _cancel_reservations(state: State, node: str, why: str, out: Outbox) -> None:
    """End what is under way to make room on a node, or by what runs there."""
    here = {residency.id for residency in _on(state, node)}
    for reservation in [*state.reservations.values()]:
        if node not in reservation.placement.nodes and not reservation.victims & here:
            continue
        model = state.models[reservation.model]
        if not (reservation.reload is not None and cancel_move(state, model, out, why)):
            cancel(state, reservation, out)


def _devices_changed(state: State, out: Outbox) -> None:
    state.changed_at = out.at
    choose_fits(state, state.models.values())
    state.want_again()
