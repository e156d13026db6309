"""Leases of memory to guests: commands that are not ours.

In the state a guest is a pinned model with one request. It waits, and makes room, as any other; what is
leased is its residency: all that holds for models holds for it. Only the end differs: the request ends when
the lease does. What a guest takes of its memory, and when, is up to the command.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.residencies import RefusalCode, UnloadReason
from cotenant.domain.units import format_bytes
from cotenant.planning.device_needs import DeviceNeeds
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import GuestAsked
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.placing import choose_fits
from cotenant.scheduling.requests import arrive, refuse
from cotenant.scheduling.state import Guest, Outbox, State
from cotenant.scheduling.transitions import drop_leases, unload


def ask(state: State, event: GuestAsked, out: Outbox) -> None:
    """Have a guest wait for its memory."""
    model = ModelState(event.spec, DeviceNeeds(event.spec.fit), pinned=True, load_s=event.spec.load_s)
    state.models[event.model] = model
    state.guests[event.model] = Guest(event.lasts_s)
    choose_fits(state, (model,))
    arrive(state, event, out)


def end(state: State, name: str, why: str, out: Outbox) -> None:
    """End a lease; its bytes are free for others once they are seen back."""
    model = state.models.get(name)
    if model is None or name not in state.guests:
        return
    refuse(state, model.queue, RefusalCode.REMOVED, f"the lease has ended: {why}", out)
    residency = state.residency_of(model)
    if residency is not None and not residency.gone:
        drop_leases(state, residency)
        unload(state, residency, out, UnloadReason.LEASE_ENDED, f"the lease has ended: {why}")


def settle(state: State, out: Outbox) -> None:
    """Begin the time of what is granted, end what is over, and forget what has ended."""
    for name, guest in [*state.guests.items()]:
        model = state.models[name]
        residency = state.residency_of(model)
        if residency is None:
            if not model.queue and name not in state.reservations:
                model.removed = True
                state.forget_model(name)
                del state.guests[name]
            continue
        if residency.leases and guest.lasts_s is not None and guest.ends_at is None:
            guest.ends_at = out.at + guest.lasts_s
        if guest.ends_at is not None and guest.ends_at <= out.at:
            end(state, name, "its time is over", out)
        elif not model.queue and not residency.leases:
            end(state, name, "its client has left", out)


def ends(state: State) -> Iterator[float]:
    """Yield when leases end by their time."""
    for guest in state.guests.values():
        if guest.ends_at is not None:
            yield guest.ends_at


def with_overuse(state: State, readings: Sequence[DeviceReading], out: Outbox) -> Sequence[DeviceReading]:
    """Count what guests hold beyond their leases as held by others, who are made room for as ever."""
    if not state.guests:
        return readings
    over = dict.fromkeys(state.guests, 0)
    found = []
    for reading in readings:
        held = reading.engine_bytes or {}
        for holder in held.keys() & state.residencies.keys():
            residency = state.residencies[holder]
            if residency.guest and reading.foreign_bytes is not None:
                more = max(0, held[holder] - residency.bytes_by_device.get(reading.device.id, 0))
                over[residency.model] += more
                reading = replace(reading, foreign_bytes=reading.foreign_bytes + more)
        found.append(reading)
    for name, more in over.items():
        if more and not state.guests[name].over_bytes:
            text = f"it holds {format_bytes(more)} more than it leases, which count as held by others"
            out.publish(DecisionKind.OVERCOMMITTED, name, text, over_bytes=more)
        state.guests[name].over_bytes = more
    return found
