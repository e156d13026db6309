"""Copies of a model: which one serves a request, and which is more than the model needs."""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import ResidencyState
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import State

_MOST_CONVERSATIONS: Final = 4096


def serving(state: State, model: ModelState) -> Iterator[Residency]:
    """Yield the residencies of a model that are ready, the first copy's first."""
    for copy in model.all_copies:
        residency = state.residency_of(copy)
        if residency is not None and residency.state is ResidencyState.READY:
            yield residency


def with_free_slot(state: State, model: ModelState, conversation: Sequence[int] = ()) -> Residency | None:
    """Return the residency that serves the next request of a model; None if none has a free slot.

    It is the one that has the longest beginning of its conversation, else the least busy one.
    """
    if not model.copies:
        residency = state.residency_of(model)
        return residency if residency is not None and _has_free_slot(residency) else None
    for key in reversed(conversation):
        known = model.conversations.get(key)
        found = None if known is None else state.residencies.get(known)
        if found is not None and _has_free_slot(found):
            return found
    free = (each for each in serving(state, model) if _has_free_slot(each))
    return min(free, key=lambda each: each.in_flight / each.slots, default=None)


def remember_conversation(model: ModelState, conversation: Sequence[int], residency: Residency) -> None:
    """Have the next request of a conversation served where this one is."""
    if not model.copies or not conversation:
        return
    known = model.conversations
    known[conversation[-1]] = residency.id
    known.move_to_end(conversation[-1])
    while len(known) > _MOST_CONVERSATIONS:
        known.popitem(last=False)


def in_flight(state: State, model: ModelState) -> int:
    """Count the requests that all copies of a model serve."""
    held = (state.residency_of(copy) for copy in model.all_copies)
    return sum(residency.in_flight for residency in held if residency is not None)


def is_spare(state: State, residency: Residency, on: Collection[DeviceId] = ()) -> bool:
    """Whether a model is served without a residency: by another copy that stays, and is not on these devices.

    Without devices only the copies after the first that stays are spare, so that all but one may go at once.
    """
    model = state.models[residency.model]
    if model.pinned or not (model.whole.copies or model.copy_of):
        return False
    for other in serving(state, model.whole):
        if other.id == residency.id:
            if not on:
                return False
            continue
        if not state.is_victim(other.id) and not any(device in on for device in other.devices):
            return True
    return False


def devices_of_others(state: State, copy: ModelState) -> frozenset[DeviceId]:
    """Return the devices of a model's other copies, which are or will be ready there."""
    held = (
        state.residencies[each]
        for other in copy.whole.all_copies
        if other is not copy
        for each in other.residencies
    )
    return frozenset(d for residency in held if not residency.gone for d in residency.devices)


def _has_free_slot(residency: Residency) -> bool:
    return residency.state is ResidencyState.READY and residency.in_flight < residency.slots
