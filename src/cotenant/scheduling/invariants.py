"""What must always be true (docs/design.md, "Laws"); checked after every step in tests."""

from collections import Counter

from cotenant.domain.advisors import MAX_KEEP_ALIVE_FACTOR, MAX_SOFT_PINS, MIN_KEEP_ALIVE_FACTOR
from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import ResidencyId, ResidencyState, UnloadReason
from cotenant.planning.ledger import Ledger
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import State

_SERVING = (ResidencyState.READY, ResidencyState.SUSPENDED, ResidencyState.DRAINING)
_EVICTED = (UnloadReason.EVICTED, UnloadReason.OVERCOMMITTED)


class InvariantViolation(AssertionError):
    """A fault of the scheduler: the message names the law and what breaks it."""


def check(state: State) -> None:
    """Raise InvariantViolation for the first law that does not hold."""
    _claims_fit(state)
    _engines_are_admitted(state)
    _claims_and_residencies_match(state)
    _copies_are_of_models(state)
    _leases_are_served(state)
    _nothing_pinned_is_evicted(state)
    _tickets_wait_once(state)
    _advice_is_bounded(state)


def check_kept(state: State) -> None:
    """Raise InvariantViolation if what is kept between events differs from what is computed anew.

    It costs as much as many events: the daemon does not call it, simulations do with each Reading.
    """
    kept, anew = state.ledger, state.ledger.rebuilt()
    for what, old, new in (
        ("claims by device", _claimed(kept), _claimed(anew)),
        ("budgets", kept.budgets(), anew.budgets()),
        ("room by node", +kept.rooms().of_nodes, +anew.rooms().of_nodes),
        ("overcommitted devices", [*kept.overcommitted()], [*anew.overcommitted()]),
        ("crowded devices", [*kept.crowded()], [*anew.crowded()]),
        ("full devices", kept.full(), anew.full()),
        (
            "residencies by state",
            {(each, residency) for each, found in state.by_state.items() for residency in found},
            {(residency.state, residency.id) for residency in state.residencies.values()},
        ),
        (
            "models to load",
            {model.spec.name for model in state.cold_and_wanted()},
            {name for name, model in state.models.items() if model.cold_and_wanted},
        ),
    ):
        if old != new:
            raise InvariantViolation(f"kept {what} are {old}, and computed anew {new}")


def _claimed(ledger: Ledger) -> dict[DeviceId, tuple[int, list[ResidencyId]]]:
    return {
        device: (ledger.claimed_bytes(device), sorted(ledger.holders(device)))
        for device in ledger.claimed_devices()
    }


def _claims_fit(state: State) -> None:
    for device, over in state.ledger.overcommitted():
        if device not in state.overcommitted:
            raise InvariantViolation(f"law 1: {device} is {over} bytes over its capacity, and not marked so")


def _engines_are_admitted(state: State) -> None:
    for device, most in state.ledger.crowded():
        if device not in state.crowded:
            raise InvariantViolation(f"law 1: {device} has more than the {most} engines it admits, unmarked")


def _claims_and_residencies_match(state: State) -> None:
    if state.ledger.claims.keys() != state.residencies.keys():
        raise InvariantViolation("law 2: claims and residencies differ")
    for residency in state.residencies.values():
        model = state.models.get(residency.model)
        if model is None:
            raise InvariantViolation(f"law 2: #{residency.id} is of {residency.model}, which is not there")
        _is_on_its_nodes(state, residency, model)
        if residency.id == model.residency:
            continue
        if residency.id not in model.others:
            raise InvariantViolation(f"law 2: {residency.model} has other residencies than #{residency.id}")
        _moves_in_one_step(state, residency.model, model)


def _is_on_its_nodes(state: State, residency: Residency, model: ModelState) -> None:
    """Check that a residency is on one machine, unless it is to be on more, and serves only if all answer."""
    name, nodes = f"{residency.model} #{residency.id}", residency.nodes
    if len(nodes) > 1 and residency.placement.link_bytes is None:
        raise InvariantViolation(f"law 2: {name} is on {len(nodes)} machines")
    is_silent = not (state.ledger.silent.keys().isdisjoint(nodes) or residency.guest)
    if is_silent and (residency.id in (model.residency, model.successor) or residency.idle):
        raise InvariantViolation(f"law 2: {name} serves, and its node does not answer")
    is_aside = residency.id in model.aside
    if is_aside and not is_silent:
        raise InvariantViolation(f"law 2: {name} is aside, and its node answers")
    if residency.state is ResidencyState.SUSPENDED and not is_aside:
        raise InvariantViolation(f"law 2: {name} is suspended, and its node answers")


def _moves_in_one_step(state: State, name: str, model: ModelState) -> None:
    """Check that a model that moves is served, that its successor only loads, and that the rest ends."""
    serving, leaving = state.residency_of(model), [state.residencies[each] for each in model.leaving]
    if {model.residency, model.successor} & (model.leaving | model.aside) or model.leaving & model.aside:
        raise InvariantViolation(f"law 2: {name} has a residency that serves and leaves")
    if model.successor is not None:
        if state.residencies[model.successor].state is not ResidencyState.LOADING:
            raise InvariantViolation(f"law 2: {name} has a successor that does not load, and does not serve")
        if serving is None or serving.state is not ResidencyState.READY:
            raise InvariantViolation(f"law 2: {name} has a successor to a residency that does not serve")
    for residency in leaving:
        ends = residency.gone or (residency.state is ResidencyState.DRAINING and residency.pending_unload)
        if not ends:
            raise InvariantViolation(f"law 2: {name} #{residency.id} serves no more, and does not end")


def _copies_are_of_models(state: State) -> None:
    """Check that further copies have residencies and nothing else that is their model's."""
    copies = [copy for model in state.copied.values() for copy in model.copies]
    if sorted(map(id, copies)) != sorted(id(each) for each in state.models.values() if each.copy_of):
        raise InvariantViolation("law 2: further copies and their models differ")
    for copy in copies:
        model = copy.whole
        if copy.queue or copy.copies or model.copies[copy.copy - 2] is not copy:
            raise InvariantViolation(
                f"law 2: {copy.spec.name} is no copy of {model.spec.name}, or more than one"
            )
        loaded = copy.residency is not None and not state.residencies[copy.residency].gone
        may_be = loaded and copy.copy > model.spec.copies.most and not model.removed
        if may_be and state.residencies[copy.residency].pending_unload is None:  # type: ignore[index]
            raise InvariantViolation(f"law 2: {model.spec.name} has more copies than it may have")


def _leases_are_served(state: State) -> None:
    held = Counter(state.leases.values())
    for residency in state.residencies.values():
        if held[residency.id] != residency.in_flight:
            raise InvariantViolation(
                f"law 3: {residency.model} counts {residency.in_flight} of {held[residency.id]} leases"
            )
        if residency.in_flight and residency.state not in _SERVING:
            raise InvariantViolation(f"law 3: {residency.model} is {residency.state} with leases out")
    if held.keys() - state.residencies.keys():
        raise InvariantViolation("law 3: a lease has outlived its residency")


def _nothing_pinned_is_evicted(state: State) -> None:
    for residency in state.residencies.values():
        evicted = residency.pending_unload is not None and residency.pending_unload[0] in _EVICTED
        unloading = residency.state is ResidencyState.UNLOADING
        if unloading and evicted and state.models[residency.model].pinned:
            raise InvariantViolation(f"law 3: {residency.model} is pinned and evicted")


def _tickets_wait_once(state: State) -> None:
    queued = Counter(ticket.id for model in state.models.values() for ticket in model.queue)
    if queued.keys() != state.tickets.keys() or any(count > 1 for count in queued.values()):
        raise InvariantViolation("law 4: a ticket is in no queue, or in two")


def _advice_is_bounded(state: State) -> None:
    if sum(bool(active.pinned_until) for active in state.advised.values()) > MAX_SOFT_PINS:
        raise InvariantViolation(f"advice: more than {MAX_SOFT_PINS} models are softly pinned")
    for name, active in state.advised.items():
        if not MIN_KEEP_ALIVE_FACTOR <= active.factor <= MAX_KEEP_ALIVE_FACTOR:
            raise InvariantViolation(f"advice: the keep-alive of {name} is multiplied by {active.factor}")
