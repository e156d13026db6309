"""Room that is made for a cold model: what is evicted for it, and what that may cost those in use."""

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.residencies import UnloadReason
from cotenant.domain.units import format_count, format_duration
from cotenant.planning.host_memory import placement_bytes
from cotenant.scheduling.model_state import ModelState, Reservation, longest_wait_s
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.transitions import resume, unload_when_idle
from cotenant.scheduling.victims import Victims


def reserve(
    state: State,
    model: ModelState,
    victims: Victims,
    out: Outbox,
    *,
    drains: bool,
) -> None:
    """Hold the room of victims for a model, and have them leave; with `drains` some are in use."""
    name = model.spec.name
    evicted = {victim.residency for victim in victims.candidates}
    needed = placement_bytes(victims.placement)
    state.reservations[name] = Reservation(name, victims.placement, needed, evicted, out.at, drains)
    state.touch(needed)
    waited = longest_wait_s(model, out.at)
    among = "" if victims.searched is None else f"; searched: the {victims.searched} devices idle longest"
    for victim in victims.candidates:
        residency = state.residencies[victim.residency]
        evicted_model = state.models[residency.model]
        evicted_model.evicted_for = name
        demand = evicted_model.whole.demand
        idle = out.at - evicted_model.last_used
        rate = f"{demand.last_minute_rate(out.at):.2f} requests/s in the last minute"
        how = (
            f"idle {format_duration(idle)}"
            if residency.idle
            else f"{format_count(residency.in_flight, 'request')} in flight"
        )
        whose = f"whose first request had waited {format_duration(waited)}{among}"
        why = f"evicted: {how}, {rate}, for {name}, {whose}"
        if not residency.idle:
            out.publish(DecisionKind.DRAIN, residency.model, f"admits no more requests: {why}")
        unload_when_idle(state, residency, out, UnloadReason.EVICTED, why)


def cancel(state: State, reservation: Reservation, out: Outbox) -> None:
    """End a reservation: busy victims admit requests again; those already unloading are unloaded."""
    end_reservation(state, reservation, out)
    for victim in reservation.victims:
        resume(state, state.residencies[victim], out.at)


def end_reservation(state: State, reservation: Reservation, out: Outbox) -> None:
    """Hold the room no longer; a drain costs the credit that it took."""
    del state.reservations[reservation.model]
    state.touch(reservation.bytes_by_device)
    for victim in reservation.victims:
        state.touch(state.residencies[victim].bytes_by_device)
    if reservation.drains:
        state.drain_credit_s = max(0.0, drain_credit_s(state, out.at) - (out.at - reservation.at))
        state.drain_credit_at = out.at


def drain_credit_s(state: State, now: float) -> float:
    """Return the seconds of draining that may be spent: a share of the time passed, up to one drain."""
    earned = (now - state.drain_credit_at) * state.settings.drain_share
    return min(state.settings.drain_limit_s, state.drain_credit_s + earned)
