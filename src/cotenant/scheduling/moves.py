"""Moves loaded models to other devices, and empties devices that are drained.

A *live* move loads a successor while the model is served; it takes over in the step in which it is ready.
Where both do not fit at once a *reload* unloads the model first. Neither ends a request.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.exit_causes import Cause
from cotenant.domain.moves import DeviceChange, MoveMethod, MoveOutcome, MovePlan
from cotenant.domain.placements import Placement, Refusal
from cotenant.domain.residencies import ResidencyState, UnloadReason
from cotenant.domain.units import format_count, format_duration
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.host_memory import placement_bytes
from cotenant.scheduling.model_state import ModelState, Reload, Reservation
from cotenant.scheduling.placing import choose_fits
from cotenant.scheduling.reservations import end_reservation
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.room import never_fits, reserved
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.transitions import (
    device_labels,
    resume,
    start,
    unload,
    unload_when_idle,
)

_SECOND_FAILURE_S: Final = 3600.0
"""How long a drained device does not move a model again after a second failure."""
_NOTHING: Final[Mapping[DeviceId, int]] = {}


def plan_move(state: State, model: ModelState, devices: frozenset[DeviceId]) -> MovePlan:
    """Return how a model would move to these devices; it stays if it cannot."""
    return _plan(state, model, devices)[0]


def plan_drain(state: State, devices: frozenset[DeviceId]) -> list[MovePlan]:
    """Return what becomes of each model on these devices if they are drained, in the order of its start."""
    before = state.ledger.drained
    state.ledger.drain(before | devices)
    try:
        taken: Counter[DeviceId] = Counter()
        plans = []
        for residency in _on(state, devices):
            if residency.id != state.models[residency.model].stays_as:
                continue
            plan, placement = _plan_leaving(state, residency, taken)
            taken.update(placement_bytes(placement) if placement is not None else {})
            plans.append(plan)
        return plans
    finally:
        state.ledger.drain(before)


def ask(state: State, model: ModelState, devices: frozenset[DeviceId], out: Outbox) -> None:
    """Begin a move, or tell why it is not possible."""
    plan, placement = _plan(state, model, devices)
    residency, name = state.residency_of(model), model.spec.name
    if residency is None or placement is None:
        out.publish(DecisionKind.MOVE, name, f"does not move: {plan.text}", outcome=MoveOutcome.REFUSED.value)
    elif plan.method is MoveMethod.LIVE:
        _begin_live(state, residency, placement, out, plan.text)
    else:
        reload = Reload(devices, device_labels(residency))
        needed = placement_bytes(placement)
        state.reservations[name] = Reservation(name, placement, needed, {residency.id}, out.at, reload=reload)
        state.want(model, f"it moves from {reload.moved_from}")
        out.publish(DecisionKind.MOVE, name, plan.text, bytes=residency.bytes)
        why = f"unloaded: it moves to {placement.label}"
        unload_when_idle(state, residency, out, UnloadReason.MOVED, why)


def cancel_move(
    state: State,
    model: ModelState,
    out: Outbox,
    why: str,
    outcome: MoveOutcome = MoveOutcome.CANCELLED,
) -> bool:
    """End a move that has not ended: the model stays where it is, if its engine has not been stopped yet."""
    name, residency = model.spec.name, state.residency_of(model)
    reservation = state.reservations.get(name)
    if model.successor is not None:
        unload(state, state.residencies[model.successor], out, UnloadReason.MOVED, f"unloaded: {why}")
        state.watch_keep_alive(model)
    elif reservation is not None and reservation.reload is not None:
        end_reservation(state, reservation, out)
        if residency is not None and residency.state is ResidencyState.DRAINING:
            resume(state, residency, out.at)
            model.wanted = ""
    else:
        return False
    out.publish(DecisionKind.MOVE, name, f"moves no more: {why}", outcome=outcome.value)
    return True


def moves(state: State, model: ModelState) -> bool:
    """Whether a move has begun, and neither the model is served there nor the move has ended otherwise."""
    residency, reservation = state.residency_of(model), state.reservations.get(model.spec.name)
    if model.successor is not None or (reservation is not None and reservation.reload is not None):
        return True
    return residency is not None and residency.ready_at is None and residency.moved_from is not None


def finish(state: State, residency: Residency, out: Outbox) -> None:
    """Have a successor that is ready take over, in one step; the old engine ends once it is idle."""
    model, moved_from = state.models[residency.model], residency.moved_from
    if moved_from is None:
        return
    here, outcome = device_labels(residency), MoveOutcome.RELOAD
    if model.successor == residency.id:
        old, outcome = state.residency_of(model), MoveOutcome.LIVE
        model.residency, model.successor = residency.id, None
        state.watch_keep_alive(model)
        if old is not None:
            model.leaving.add(old.id)
            unload_when_idle(state, old, out, UnloadReason.MOVED, f"unloaded: it has moved to {here}")
            left = f": {format_count(old.in_flight, 'request')} end there" if old.in_flight else ""
            moved_from += left
    model.move_failures, model.move_again_at = 0, 0.0
    text = f"serves from {here} now, in place of {moved_from}"
    out.publish(DecisionKind.MOVE, residency.model, text, outcome=outcome.value)


def failed(state: State, residency: Residency, why: str, cause: Cause, out: Outbox) -> None:
    """Record that a model could not be loaded where it moves: if it is served, nobody has noticed."""
    model, stays, facts = state.models[residency.model], "", {"outcome": MoveOutcome.FAILED.value}
    if model.successor == residency.id:
        model.move_failures += 1
        again_s = state.settings.backoff_s if model.move_failures == 1 else _SECOND_FAILURE_S
        model.move_again_at, stays = out.at + again_s, f", it stays on {residency.moved_from}"
        facts["cause"] = cause.value
    text = f"the move to {device_labels(residency)} has failed{stays}: {why}"
    out.publish(DecisionKind.MOVE, residency.model, text, **facts)


def drains_changed(state: State, devices: frozenset[DeviceId], out: Outbox) -> None:
    """Drain exactly these devices from now on."""
    before = state.ledger.drained
    state.ledger.drain(devices)
    for device in sorted(devices - before):
        text = f"{_label(state, device)} is drained: nothing new is placed there, and what is there leaves"
        out.publish(DecisionKind.DRAIN, None, text)
    for device in sorted(before - devices):
        out.publish(DecisionKind.DRAIN, None, f"{_label(state, device)} is drained no more")
    state.changed_at = out.at
    choose_fits(state, state.models.values())
    state.want_again()


def continue_moves(state: State, out: Outbox) -> None:
    """Take the next step of every reload, and of every model on a device that is drained."""
    for reservation in [*state.reservations.values()]:
        if reservation.reload is not None:
            _continue_reload(state, reservation, reservation.reload, out)
    if state.ledger.drained and not state.stopping:
        for residency in _on(state, state.ledger.drained):
            _leave(state, residency, out)


def awaits_room(state: State) -> bool:
    """Whether a model on a drained device may leave when a request ends."""
    return any(state.ledger.holders(device) for device in state.ledger.drained)


def instants(state: State) -> Iterator[float]:
    """Yield when a move changes without an event."""
    for reservation in state.reservations.values():
        if reservation.reload is not None:
            yield reservation.at + state.settings.drain_limit_s
    for residency in _on(state, state.ledger.drained):
        yield state.models[residency.model].move_again_at


def _continue_reload(state: State, reservation: Reservation, reload: Reload, out: Outbox) -> None:
    model = state.models[reservation.model]
    residency = state.residency_of(model)
    drained_s = out.at - reservation.at
    if state.stopping:
        cancel_move(state, model, out, "the daemon is shutting down")
    elif residency is not None:
        if residency.state is ResidencyState.DRAINING and drained_s >= state.settings.drain_limit_s:
            count = format_count(residency.in_flight, "request")
            why = f"it stays where it is, since {count} had not ended within {format_duration(drained_s)}"
            cancel_move(state, model, out, why, MoveOutcome.FAILED)
    elif not state.loading_devices() & reservation.bytes_by_device.keys():
        end_reservation(state, reservation, out)
        found = _choose(state, model, reload.devices)
        if isinstance(found, Refusal) or model.retry_at > out.at:
            reason = found.reason if isinstance(found, Refusal) else model.last_failure
            text = f"the move from {reload.moved_from} has failed, it is loaded where there is room: {reason}"
            out.publish(DecisionKind.MOVE, reservation.model, text, outcome=MoveOutcome.FAILED.value)
            return
        started = start(state, model, found, out, f"it moves here from {reload.moved_from}")
        started.moved_from = reload.moved_from


def _leave(state: State, residency: Residency, out: Outbox) -> None:
    """Have a model leave a drained device, if that is possible now."""
    model = state.models[residency.model]
    if residency.id == model.successor:
        cancel_move(state, model, out, f"it stays where it is, since {device_labels(residency)} is drained")
    if obstacle(state, model) or residency.id != model.residency:
        return
    plan, placement = _plan_leaving(state, residency, _NOTHING)
    may_try = model.move_again_at <= out.at
    if plan.method is MoveMethod.STAY:
        if model.last_waiting_text != plan.text:
            model.last_waiting_text = plan.text
            out.publish(DecisionKind.MOVE, residency.model, plan.text)
    elif plan.method is MoveMethod.LIVE and placement is not None and may_try:
        if not state.loading_devices() & placement_bytes(placement).keys():
            _begin_live(state, residency, placement, out, plan.text)
    elif residency.idle and not model.queue:
        if model.stays:
            state.want(model, "its device is drained")
        unload(state, residency, out, UnloadReason.MOVED, "unloaded: its device is drained")


def _begin_live(state: State, residency: Residency, placement: Placement, out: Outbox, text: str) -> None:
    model, moved_from = state.models[residency.model], device_labels(residency)
    out.publish(DecisionKind.MOVE, residency.model, text, expected_s=model.expected_load_s(placement.node))
    started = start(state, model, placement, out, f"it takes over from {moved_from} then", successor=True)
    started.moved_from = moved_from


def _plan(state: State, model: ModelState, devices: frozenset[DeviceId]) -> tuple[MovePlan, Placement | None]:
    """Return the plan of a move that is asked for, and the placement unless the model stays."""
    residency, why_not = state.residency_of(model), obstacle(state, model)
    if residency is None or why_not:
        return MovePlan(model.spec.name, MoveMethod.STAY, why_not), None
    here = frozenset(residency.devices)
    if here <= devices:
        return _described(state, residency, MoveMethod.STAY, None, "it is there already"), None
    live = _choose(state, model, devices)
    if isinstance(live, Placement):
        text = "both engines hold memory until it is ready there"
        return _described(state, residency, MoveMethod.LIVE, live, text), live
    after = _choose(state, model, devices, residency.bytes_by_device)
    if isinstance(after, Refusal):
        return _described(state, residency, MoveMethod.STAY, None, after.reason), None
    text = f"both do not fit at once ({live.reason}), so requests wait until it is loaded"
    return _described(state, residency, MoveMethod.RELOAD, after, text), after


def _plan_leaving(
    state: State, residency: Residency, taken: Mapping[DeviceId, int]
) -> tuple[MovePlan, Placement | None]:
    """Return how a model leaves devices that are drained, once others have `taken` bytes.

    A load under way on the target counts as taken, and delays the move.
    """
    model = state.models[residency.model]
    found = _choose(state, model, None, {d: -count for d, count in taken.items()}, waits=True)
    if fixed := _fixed(residency):
        found = Refusal(residency.model, fixed)
    if isinstance(found, Placement):
        text = "both engines hold memory until it is ready there"
        return _described(state, residency, MoveMethod.LIVE, found, text), found
    if model.pinned and (fixed or never_fits(state, model)):
        text = f"it is pinned and can be nowhere else: {found.reason}"
        return _described(state, residency, MoveMethod.STAY, None, text), None
    text = f"once it is idle; it does not move, since {found.reason}"
    return _described(state, residency, MoveMethod.UNLOAD, None, text), None


def _choose(
    state: State,
    model: ModelState,
    devices: frozenset[DeviceId] | None,
    freed: Mapping[DeviceId, int] = _NOTHING,
    *,
    waits: bool = False,
) -> Placement | Refusal:
    """Place a model on these devices, or any that are not drained, by the room that is free now.

    What is `freed` counts as free as well, and each device in it as one engine fewer. With `waits`, devices
    with a load under way count too.
    """
    reserved_bytes, reserved_engines = reserved(state)
    reserved_bytes.update(freed)
    reserved_engines.update({device: 1 for device, count in freed.items() if count > 0})
    budgets = state.ledger.budgets(
        freed=reserved_bytes,
        leaving=reserved_engines,
        busy=set() if waits else state.loading_devices(),
    )
    allowed = [
        budget
        if devices is None or budget.device.id in devices
        else replace(budget, budget_bytes=0, left_out="it is not to move there")
        for budget in budgets
    ]
    used = state.ledger.claimed_devices()
    found = choose_devices(model.fit, allowed, used, together=model.spec.together)
    return state.ledger.on_host(found, reserved_bytes)


def obstacle(state: State, model: ModelState) -> str:
    """Return why a model cannot begin to move now; empty if it can."""
    residency = state.residency_of(model)
    if residency is None:
        return "it is not loaded"
    if model.successor is not None or model.spec.name in state.reservations:
        return "it is moving already"
    if residency.state is not ResidencyState.READY:
        return f"it is {residency.state} at the moment"
    return _fixed(residency)


def _fixed(residency: Residency) -> str:
    """Return why a model is never moved; empty if it may be."""
    if residency.guest:
        return "it is memory that a command has leased"
    if not residency.bytes_by_device:
        return "it is served elsewhere and holds no memory here"
    if len(residency.nodes) > 1:
        return "it is over several machines"
    traits = residency.placement.recipe.engine.traits
    return "the daemon of its engine decides where it is" if traits.daemon_address else ""


def _described(
    state: State, residency: Residency, method: MoveMethod, placement: Placement | None, text: str
) -> MovePlan:
    """Describe a plan with what it changes on each device that it concerns."""
    model, old = state.models[residency.model], residency.bytes_by_device
    new = placement_bytes(placement) if placement is not None else {}
    leaves = method is not MoveMethod.STAY
    changes = []
    for device in sorted((old.keys() | new.keys()) & state.ledger.readings.keys(), key=[*old, *new].index):
        now = state.ledger.claimed_bytes(device)
        after = now + new.get(device, 0) - (old.get(device, 0) if leaves else 0)
        during = now + new.get(device, 0) if method is MoveMethod.LIVE else max(now, after)
        known = state.ledger.readings[device].device
        changes.append(
            DeviceChange(known.id, known.index, known.own_name, known.total_bytes, now, during, after)
        )
    here, there = device_labels(residency), placement.label if placement is not None else ""
    if there:
        how = "live" if method is MoveMethod.LIVE else "by a reload"
        text = f"moves {how} from {here} to {there}: {text}"
    elif method is MoveMethod.UNLOAD:
        text = f"is unloaded from {here} {text}"
    expected_s = None if placement is None or not there else model.expected_load_s(placement.node)
    if expected_s is not None and method is MoveMethod.RELOAD:
        expected_s += state.unload_s
    source = tuple(share.device.label for share in residency.placement.used_shares)
    target = tuple(share.device.label for share in placement.used_shares) if placement is not None else ()
    return MovePlan(residency.model, method, text, source, target, tuple(changes), expected_s)


def _on(state: State, devices: Iterable[DeviceId]) -> list[Residency]:
    """Return the residencies on devices whose engines have not been stopped, the oldest first."""
    holders = {holder for device in devices for holder in state.ledger.holders(device)}
    found = (state.residencies[holder] for holder in sorted(holders))
    return [
        residency
        for residency in found
        if not residency.gone and residency.state is not ResidencyState.DRAINING
    ]


def _label(state: State, device: DeviceId) -> str:
    reading = state.ledger.readings.get(device)
    return device if reading is None else reading.device.label
