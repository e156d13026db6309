"""The life of a residency: which state may follow which, and what each step does."""

from typing import Final

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyId, ResidencyState, UnloadReason
from cotenant.domain.units import format_bytes, format_duration
from cotenant.planning.host_memory import placement_bytes
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.commands import StartEngine, StopEngine
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.residency import LastSeen, Residency
from cotenant.scheduling.state import Outbox, State

LOADING, READY, SUSPENDED, DRAINING, UNLOADING, RECLAIMING = ResidencyState

ALLOWED: Final = {
    LOADING: {READY, SUSPENDED, UNLOADING, RECLAIMING},
    READY: {SUSPENDED, DRAINING, UNLOADING, RECLAIMING},
    SUSPENDED: {READY, DRAINING, UNLOADING, RECLAIMING},
    DRAINING: {READY, UNLOADING, RECLAIMING},
    UNLOADING: {RECLAIMING},
    RECLAIMING: set[ResidencyState](),
}
_KINDS: Final = {
    UnloadReason.EVICTED: DecisionKind.EVICT,
    UnloadReason.OVERCOMMITTED: DecisionKind.EVICT,
    UnloadReason.DEVICE_LOST: DecisionKind.DEVICE_LOST,
}
_LOAD_MEMORY: Final = 0.3
_SEEN_BACK: Final = 0.75


class InvalidTransition(AssertionError):
    """A transition that is not allowed: a fault of the scheduler."""


def enter(state: State, residency: Residency, to: ResidencyState, at: float) -> None:
    """Change state. Raises InvalidTransition.

    An engine that ends does not serve its model any more: a successor takes its place at once.
    """
    if to not in ALLOWED[residency.state]:
        raise InvalidTransition(f"{residency.model} #{residency.id}: {residency.state} → {to} at {at}")
    state.by_state[residency.state].remove(residency.id)
    state.by_state[to].add(residency.id)
    residency.state = to
    residency.since = at
    state.touch(residency.bytes_by_device)
    state.idle.pop(residency.id, None)
    if residency.gone:
        model = state.models[residency.model]
        if step_down(model, residency.id) and model.residency is not None:
            state.touch(state.residencies[model.residency].bytes_by_device)
    if to is READY:
        if residency.idle:
            state.idle[residency.id] = None
        state.watch_keep_alive(state.models[residency.model])


def step_down(model: ModelState, residency: ResidencyId) -> bool:
    """Have a residency serve its model no more, if there is a successor, nor succeed another one.

    Returns whether it does not stay what it was.
    """
    if residency == model.successor:
        model.successor = None
    elif residency == model.residency and model.successor is not None:
        model.residency, model.successor = model.successor, None
    else:
        return False
    model.leaving.add(residency)
    return True


def start(
    state: State, model: ModelState, placement: Placement, out: Outbox, why: str, *, successor: bool = False
) -> Residency:
    """Claim the placement's bytes and start the engine, as the `successor` of one that serves if so."""
    residency = Residency(
        id=ResidencyId(state.next_id()),
        model=model.spec.name,
        placement=placement,
        bytes_by_device=placement_bytes(placement),
        state=LOADING,
        since=out.at,
        slots=model.spec.slots,
        guest=model.spec.guest,
    )
    state.residencies[residency.id] = residency
    state.by_state[LOADING].add(residency.id)
    state.ledger.claim(residency.id, residency.bytes_by_device, grows=residency.guest)
    model.tried = None
    if successor:
        model.successor = residency.id
    else:
        model.residency = residency.id
    model.whole.loads += 1
    model.last_waiting_text = ""
    state.end_prefetch(model.spec.name)
    expected_s = model.expected_load_s(placement.node)
    elsewhere = placement.recipe.engine.traits.planning is PlanMethod.NONE
    where = "connecting to where it is served" if elsewhere else "loading without memory of a GPU"
    if residency.bytes_by_device:
        where = f"loading on {device_labels(residency)}: {format_bytes(residency.bytes)}"
    if residency.guest:
        where = f"leases {format_bytes(residency.bytes)} of {device_labels(residency)}"
    out.publish(
        DecisionKind.LOAD,
        residency.model,
        f"{where}; {why}" if residency.guest else f"{where}, about {format_duration(expected_s)}; {why}",
        bytes=residency.bytes,
        expected_s=expected_s,
    )
    out.add(StartEngine(residency.id, model.whole.spec.name, placement))
    return residency


def became_ready(state: State, residency: Residency, out: Outbox, placement: Placement | None = None) -> None:
    """Record that the engine is ready; `placement` replaces the planned one, and its claim."""
    if placement is not None:
        residency.placement = placement
        state.ledger.change(residency.id, placement_bytes(placement))
    model = state.models[residency.model]
    whole, took_s = model.whole, out.at - residency.since
    if not residency.adopted:
        usual_s = took_s if whole.loads == 1 else whole.load_s
        whole.load_s = (1 - _LOAD_MEMORY) * usual_s + _LOAD_MEMORY * took_s
    model.retry_at, model.last_failure, model.last_cause = 0.0, None, None
    model.wanted = ""
    model.last_used = out.at
    enter(state, residency, READY, out.at)
    residency.ready_at = out.at
    if not residency.guest:
        state.ledger.show(residency.id, out.at)
    lower_claim(state, residency, model.spec.seen_bytes)
    out.publish(DecisionKind.READY, residency.model, f"ready after {format_duration(took_s)}", load_s=took_s)


def lower_claim(state: State, residency: Residency, seen_bytes: int | None) -> None:
    """Claim no more than a ready model was measured to hold: its first claim may have been a guess."""
    if seen_bytes is None or residency.state is not READY or len(residency.bytes_by_device) != 1:
        return
    (device,) = residency.bytes_by_device
    state.ledger.lower(residency.id, device, seen_bytes)


def unload(
    state: State,
    residency: Residency,
    out: Outbox,
    reason: UnloadReason,
    why: str,
    *,
    cuts_requests: bool = False,
) -> None:
    """Stop the engine."""
    held_s = out.at - residency.held_since
    enter(state, residency, UNLOADING, out.at)
    residency.pending_unload = (reason, why)
    residency.unloading_at = out.at
    if residency.bytes:
        why = f"{why}; frees {format_bytes(residency.bytes)} on {device_labels(residency)}"
    kind, facts = _KINDS.get(reason, DecisionKind.UNLOAD), {"bytes": residency.bytes, "held_s": held_s}
    out.publish(kind, residency.model, why, **facts, reason=reason.value)
    out.add(StopEngine(residency.id, cuts_requests, moved=reason is UnloadReason.MOVED))


def unload_when_idle(
    state: State, residency: Residency | None, out: Outbox, reason: UnloadReason, why: str
) -> None:
    """Unload at once if nothing uses it; else admit no more requests, and unload when the last one ends."""
    if residency is None or residency.gone:
        return
    if not residency.in_flight:
        unload(state, residency, out, reason, why)
        return
    if residency.state in (READY, SUSPENDED):
        enter(state, residency, DRAINING, out.at)
    if residency.pending_unload is None or residency.pending_unload[0] is not reason:
        residency.since = out.at
    residency.pending_unload = (reason, why)


def resume(state: State, residency: Residency, at: float) -> None:
    """Admit requests again: the room is not needed."""
    if residency.state is DRAINING:
        enter(state, residency, READY, at)
        residency.pending_unload = None


def exited(state: State, residency: Residency, out: Outbox) -> None:
    """The process is gone: its leases end, and its claim stays until the bytes are seen back."""
    drop_leases(state, residency)
    enter(state, residency, RECLAIMING, out.at)
    residency.ended_at = out.at
    state.reclaims.watch(residency.id, out.at + state.settings.reclaim_bound_s)
    for device in residency.bytes_by_device:
        seen = _last_seen(state.ledger.readings.get(device), residency.id)
        if seen is not None:
            residency.last_seen.setdefault(device, seen)
    reclaim(state, residency, out)


def record_last_seen(state: State, holder: ResidencyId, reading: DeviceReading) -> None:
    """Record the last measurement of a card that shows memory of an engine.

    Later Readings may not show the engine before its exit is reported.
    """
    residency = state.residencies.get(holder)
    if (
        residency is None
        or residency.state is RECLAIMING
        or reading.device.id not in residency.bytes_by_device
    ):
        return
    seen = _last_seen(reading, holder)
    if seen is not None and seen.engine_bytes:
        residency.last_seen[reading.device.id] = seen


def drop_leases(state: State, residency: Residency) -> None:
    """End the leases of an engine that can no longer serve them."""
    for lease in residency.leases:
        del state.leases[lease]
    residency.leases.clear()


def reclaim(state: State, residency: Residency, out: Outbox) -> None:
    """Release the claim if its bytes are free on every device, or `reclaim_bound_s` has passed."""
    if residency.ended_at is None:
        return
    waited_s = out.at - residency.ended_at
    missing = [device for device in residency.last_seen if not _seen_back(state, residency, device)]
    is_silent = not state.ledger.silent.keys().isdisjoint(residency.nodes)
    if missing and (waited_s < state.settings.reclaim_bound_s or is_silent):
        return
    if missing:
        holders = "; ".join(filter(None, (state.ledger.readings[device].holders for device in missing)))
        out.publish(
            DecisionKind.NOT_FREED,
            residency.model,
            f"its engine is gone, but its memory was not seen back within {format_duration(waited_s)}; "
            f"processes on the cards: {holders or 'none that the driver names'}",
            waited_s=waited_s,
        )
    elif residency.bytes_by_device:
        out.publish(
            DecisionKind.FREED,
            residency.model,
            f"its {format_bytes(residency.bytes)} are back after {format_duration(waited_s)}",
            bytes=residency.bytes,
            waited_s=waited_s,
        )
    if residency.unloading_at is not None:
        state.unload_s = out.at - residency.unloading_at
    forget(state, residency)


def forget(state: State, residency: Residency) -> None:
    """Release the claim of a residency without leases, which is one of its model no more."""
    del state.residencies[residency.id]
    state.by_state[residency.state].remove(residency.id)
    state.idle.pop(residency.id, None)
    state.ledger.release(residency.id)
    model = state.models[residency.model]
    step_down(model, residency.id)
    model.leaving.discard(residency.id)
    model.aside.discard(residency.id)
    if model.residency == residency.id:
        state.became_cold(model)
    if model.removed and not (model.queue or model.residencies or model.copies):
        state.forget_model(residency.model)
    for reservation in state.reservations.values():
        reservation.victims.discard(residency.id)


def device_labels(residency: Residency) -> str:
    """Name the devices of a residency for people."""
    return residency.placement.label


def _seen_back(state: State, residency: Residency, device: DeviceId) -> bool:
    """Whether a later Reading shows the bytes free, or held by neither the engine nor a process it left."""
    reading = state.ledger.readings.get(device)
    if reading is None or not reading.live:
        return True
    if residency.ended_at is None or reading.at <= residency.ended_at or reading.free_bytes is None:
        return False
    if reading.engine_bytes is not None:
        return residency.id not in reading.engine_bytes and not _inherited(residency, reading)
    if residency.ready_at is None or residency.guest:
        # It is unknown how much was taken when it ended: any later Reading counts.
        return True
    expected = _SEEN_BACK * residency.bytes_by_device[device]
    return reading.free_bytes - residency.last_seen[device].free_bytes >= expected


def _inherited(residency: Residency, reading: DeviceReading) -> bool:
    """Whether others hold about as much more as the engine held: one of its processes has survived it.

    Another process that grows at that moment delays the next load, by at most `reclaim_bound_s`.
    """
    before = residency.last_seen[reading.device.id]
    if before.foreign_bytes is None or not before.engine_bytes or reading.foreign_bytes is None:
        return False
    return reading.foreign_bytes - before.foreign_bytes >= _SEEN_BACK * before.engine_bytes


def _last_seen(reading: DeviceReading | None, engine: ResidencyId) -> LastSeen | None:
    """Return the state of a card; None if no driver measures it now."""
    if reading is None or not reading.live or reading.free_bytes is None:
        return None
    held = None if reading.engine_bytes is None else reading.engine_bytes.get(engine, 0)
    return LastSeen(reading.free_bytes, reading.foreign_bytes, held)
