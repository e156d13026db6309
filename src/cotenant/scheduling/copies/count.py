"""How many copies of a model there are: when one is added, and which one stands in for the first.

A further copy is placed like a cold model, but on devices where no other copy is, and never at the cost of a
model in demand (`victims`). It goes before anybody else when room is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import ResidencyState, UnloadReason, copy_name
from cotenant.domain.units import format_count, format_duration
from cotenant.planning.device_needs import DeviceNeeds
from cotenant.scheduling.copies.serving import devices_of_others
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.requests import dispatch
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.transitions import unload_when_idle


def serve_copies(state: State, model: ModelState) -> None:
    """Have as many further copies of a model as it may have; those beyond leave (`settle_copies`)."""
    for number in range(len(model.copies) + 2, model.spec.copies.most + 1):
        name = copy_name(model.spec.name, number)
        copy = ModelState(model.spec, DeviceNeeds(model.fit), pinned=False, copy=number, copy_of=model)
        state.models[name] = copy
        model.copies.append(copy)
    for copy in model.copies:
        copy.spec = _spec_of_copy(model.spec, copy.copy)
    if model.copies:
        state.copied[model.spec.name] = model


def settle_copies(state: State, out: Outbox) -> None:
    """Add copies where requests wait, and see to those that there are."""
    keep_first_copies(state)
    for model in [*state.copied.values()]:
        for copy in model.copies[::-1]:
            if copy.copy > model.spec.copies.most or model.removed:
                _leave(state, copy, out)
        for copy in model.copies:
            if copy.copy > model.spec.copies.most or model.removed:
                break
            copy.pinned = is_pinned_copy(copy)
            if copy.residency is None and copy.spec.name not in state.reservations:
                why = _why_wanted(state, model, copy, out.at)
                if why and not copy.wanted:
                    state.want(copy, why)
                copy.wanted = why
            _keep_apart(state, copy)
        dispatch(state, model, out)
        if not model.copies:
            del state.copied[model.spec.name]
            if model.removed and not model.queue and not model.residencies:
                state.forget_model(model.spec.name)


def keep_first_copies(state: State) -> None:
    """Have another copy stand in for each first one that has gone, and does not move."""
    for model in state.copied.values():
        _keep_first(state, model)


def is_pinned_copy(copy: ModelState) -> bool:
    """Whether a further copy is among those that are to stay with their model."""
    model = copy.whole
    return model.pinned and copy.copy <= model.spec.copies.least


def grows_at(state: State) -> Iterator[float]:
    """Yield when requests will have waited long enough for another copy, if none is served before."""
    for model in state.copied.values():
        if _may_grow(state, model):
            begun_at = sum(ticket.at for ticket in model.queue)
            yield (begun_at + model.load_s) / len(model.queue) + 0.001


def _spec_of_copy(spec: ModelSpec, number: int) -> ModelSpec:
    return replace(spec, name=copy_name(spec.name, number), pinned=False, preload=False)


def _keep_first(state: State, model: ModelState) -> None:
    first = state.residency_of(model)
    if (first is not None and not first.gone) or model.removed or model.spec.name in state.reservations:
        return
    for wanted in (ResidencyState.READY, ResidencyState.LOADING):
        for copy in model.copies:
            residency = state.residency_of(copy)
            if residency is None or residency.state is not wanted or copy.spec.name in state.reservations:
                continue
            _swap(state, model, copy)
            model.wanted = ""
            return


def _swap(state: State, model: ModelState, copy: ModelState) -> None:
    model.residency, copy.residency = copy.residency, model.residency
    model.successor, copy.successor = copy.successor, model.successor
    model.leaving, copy.leaving = copy.leaving, model.leaving
    model.aside, copy.aside = copy.aside, model.aside
    model.retry_at, copy.retry_at = copy.retry_at, model.retry_at
    model.failures, copy.failures = copy.failures, model.failures
    for each in (model, copy):
        each.tried = None
        for residency in each.residencies:
            state.residencies[residency].model = each.spec.name
    state.watch_keep_alive(model)


def _leave(state: State, copy: ModelState, out: Outbox) -> None:
    """Unload a copy that the model has no more, and forget it once it is gone."""
    model = copy.whole
    copy.wanted, copy.wanted_later, copy.pinned = "", "", False
    reason, why = UnloadReason.CHANGED, f"unloaded: {_count(model.spec.copies.most)} of it are to be there"
    if model.removed:
        reason, why = UnloadReason.REMOVED, "unloaded: it is not served any more"
    for each in sorted(copy.residencies):
        residency = state.residencies[each]
        if residency.pending_unload is None:
            unload_when_idle(state, residency, out, reason, why)
    if not copy.residencies and copy is model.copies[-1]:
        model.copies.pop()
        state.forget_model(copy.spec.name)


def _why_wanted(state: State, model: ModelState, copy: ModelState, now: float) -> str:
    """Return why a copy that is not loaded is to be; empty if it is not."""
    first = state.residency_of(model)
    if state.stopping or first is None or first.state is not ResidencyState.READY:
        return ""
    least = model.spec.copies.least
    if copy.copy <= least:
        return f"{_count(least)} are loaded with the model"
    if copy.wanted and model.queue:
        return copy.wanted
    if not _may_grow(state, model) or copy.retry_at > now:
        return ""
    waited_s = sum(now - ticket.at for ticket in model.queue)
    if waited_s < model.load_s:
        return ""
    count, waits = format_count(len(model.queue), "request"), "waits" if len(model.queue) == 1 else "wait"
    return f"{count} {waits} for a slot, {format_duration(waited_s)} in sum"


def _may_grow(state: State, model: ModelState) -> bool:
    """Whether a model whose requests wait could have another copy, beyond those on their way."""
    first = state.residency_of(model)
    if not model.queue or first is None or first.state is not ResidencyState.READY or state.stopping:
        return False
    cold = coming = 0
    for copy in model.copies:
        residency = state.residency_of(copy)
        if residency is None:
            cold += not copy.wanted
            coming += bool(copy.wanted)
        elif residency.state is ResidencyState.LOADING:
            coming += 1
    return cold > 0 and len(model.queue) > coming * model.spec.slots


def _keep_apart(state: State, copy: ModelState) -> None:
    """Have a copy placed where no other one is."""
    model, taken = copy.whole, devices_of_others(state, copy)
    readings = state.ledger.readings
    inputs = (taken, model.fit, model.allowed, state.changed_at, len(readings))
    if inputs == copy.placed_by:
        return
    copy.placed_by, fit = inputs, model.fit

    def apart(budgets: Sequence[Budget]) -> Placement | Refusal:
        return fit([_left_out(budget) if budget.device.id in taken else budget for budget in budgets])

    copy.needs = DeviceNeeds(apart)
    copy.allowed = tuple(d for d in (readings if model.allowed is None else model.allowed) if d not in taken)
    copy.tried = None


def _left_out(budget: Budget) -> Budget:
    return replace(budget, budget_bytes=0, left_out="another copy of the model is there")


def _count(copies: int) -> str:
    return "1 copy" if copies == 1 else f"{copies} copies"
