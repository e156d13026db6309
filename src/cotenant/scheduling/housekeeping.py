"""What changes without a request: Readings, lost devices, idle models, timers."""

import math
from collections.abc import Iterable, Iterator, Set

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyId, ResidencyState, UnloadReason
from cotenant.domain.units import format_bytes, format_count, format_duration
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.advice import advised_keep_alive
from cotenant.scheduling.copies.count import grows_at
from cotenant.scheduling.copies.serving import is_spare
from cotenant.scheduling.events import DevicesRead
from cotenant.scheduling.guests import ends, with_overuse
from cotenant.scheduling.model_state import ModelState, longest_wait_s
from cotenant.scheduling.moves import instants
from cotenant.scheduling.placing import choose_fits
from cotenant.scheduling.reservations import drain_credit_s
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.transitions import drop_leases, reclaim, record_last_seen, start, unload
from cotenant.scheduling.victims import eviction_cost

_PREFETCH_CHANCE = 0.5


def read_devices(state: State, event: DevicesRead, out: Outbox) -> None:
    """Record Readings: release claims whose bytes are free again, and unload models of lost devices."""
    known = {*state.ledger.devices_of(event.node)}
    own = [reading for reading in event.readings if not _is_of_another_node(state, reading)]
    lost = state.ledger.read(with_overuse(state, own, out), event.node)
    measured: dict[ResidencyId, int] = {}
    for reading in own:
        for holder, count in (reading.engine_bytes or {}).items():
            measured[holder] = measured.get(holder, 0) + count
            record_last_seen(state, holder, reading)
    for holder, count in measured.items():
        if holder in state.residencies:
            state.residencies[holder].measured_bytes = count
    if lost or known != {*state.ledger.devices_of(event.node)}:
        choose_fits(state, state.models.values())
    if lost:
        state.changed_at = out.at
    for device in lost:
        out.publish(
            DecisionKind.DEVICE_LOST, None, f"{device} is gone: its models move to others where they fit"
        )
        for residency in _on(state, device):
            model = state.models[residency.model]
            if model.stays_as == residency.id and model.successor is None and not residency.guest:
                state.want(model, "its device is gone")
            drop_leases(state, residency)
            unload(state, residency, out, UnloadReason.DEVICE_LOST, f"its device {device} is gone")
    state.want_again()
    release_returned(state, out, known.union(reading.device.id for reading in event.readings))
    evict_for_others(state, out)
    # A device may admit fewer engines than it has: these stay, and no more are started.
    crowded = dict(state.ledger.crowded())
    for device in sorted(crowded.keys() - state.crowded):
        admission = state.ledger.readings[device].admission
        text = f"{device} has {state.ledger.engines(device)} engines and admits {admission.max_engines}"
        out.publish(DecisionKind.OVERCOMMITTED, None, f"{text}: {admission.why}")
    state.crowded = set(crowded)


def _is_of_another_node(state: State, reading: DeviceReading) -> bool:
    """Whether a device is known as that of another node: this is the same machine, under a second name."""
    known = state.ledger.readings.get(reading.device.id)
    return known is not None and known.device.node != reading.device.node


def release_returned(state: State, out: Outbox, among: Set[DeviceId] | None = None) -> None:
    """Release the claims of ended engines whose bytes are free again, `among` these devices if given."""
    for residency in state.in_state(ResidencyState.RECLAIMING):
        if among is None or not among.isdisjoint(residency.bytes_by_device):
            reclaim(state, residency, out)


def evict_for_others(state: State, out: Outbox) -> None:
    """Evict idle models, cheapest first, from devices that other processes overcommitted."""
    over_now = dict(state.ledger.overcommitted())
    for device in sorted(state.overcommitted - over_now.keys()):
        out.publish(DecisionKind.OVERCOMMITTED, None, f"{device} has room again")
    for device in sorted(over_now.keys() - state.overcommitted):
        holders = state.ledger.readings[device].holders
        out.publish(
            DecisionKind.OVERCOMMITTED,
            None,
            f"{device} is short of {format_bytes(over_now[device])}: "
            f"other processes took memory ({holders or 'not named by the driver'})",
            missing_bytes=over_now[device],
        )
    state.overcommitted = set(over_now)
    for device, missing in over_now.items():
        leaving = sum(r.bytes_by_device[device] for r in _on(state, device, gone=True))
        idle = [r for r in _on(state, device) if r.idle and not state.models[r.model].pinned]
        ranked = sorted(idle, key=lambda r: (not is_spare(state, r), eviction_cost(state, r, out.at), r.id))
        for residency in ranked:
            if leaving >= missing:
                break
            leaving += residency.bytes_by_device[device]
            why = "evicted: other processes have taken memory of its device"
            unload(state, residency, out, UnloadReason.OVERCOMMITTED, why)


def unload_expired(state: State, out: Outbox) -> None:
    """Unload models whose keep-alive has expired."""
    for due in state.keep_alives.pop_due(out.at):
        residency = state.residencies[due]
        model = state.models[residency.model]
        idle, advised = (
            format_duration(out.at - state.last_used(model)),
            advised_keep_alive(state, model.whole),
        )
        if advised:
            out.publish(DecisionKind.ADVISED, residency.model, f"its keep-alive ends{advised}", mattered=1)
        why = f"unloaded: idle {idle}, its keep-alive{advised}"
        unload(state, residency, out, UnloadReason.KEEP_ALIVE, why)


def end_drains(state: State, out: Outbox) -> None:
    """Unload models that the operator wants unloaded, once their requests have had their grace."""
    for residency in state.in_state(ResidencyState.DRAINING):
        due = drain_ends_at(state, residency)
        if due is not None and due <= out.at and residency.pending_unload is not None:
            count, (reason, why) = residency.in_flight, residency.pending_unload
            drop_leases(state, residency)
            why = f"{why}; {format_count(count, 'request')} had not ended in the grace"
            unload(state, residency, out, reason, why, cuts_requests=True)


def drain_ends_at(state: State, residency: Residency) -> float | None:
    """Return when an operator's unload waits no longer for requests; None without one."""
    draining, pending = residency.state is ResidencyState.DRAINING, residency.pending_unload
    if not draining or pending is None or pending[0] is not UnloadReason.OPERATOR:
        return None
    return residency.since + state.settings.unload_grace_s


def prefetch(state: State, out: Outbox) -> None:
    """Load one model that is likely requested soon into free memory that no request needs."""
    if not (state.settings.prefetch or state.advised) or state.stopping or state.tickets:
        return
    if state.loading_devices() or state.max_loaded_reached():
        return
    for chance, model in _likely(state, out.at):
        placement = choose_devices(model.fit, state.ledger.budgets(), (), together=model.spec.together)
        if isinstance(placement, Placement):
            why = "the advisor expects it" if chance is None else f"likely wanted soon ({chance:.0%})"
            if chance is None:
                out.publish(DecisionKind.ADVISED, model.spec.name, "loaded ahead by the advisor", mattered=1)
            start(state, model, placement, out, f"{why}, and there is room")
            return


def _likely(state: State, now: float) -> Iterator[tuple[float | None, ModelState]]:
    """Yield cold models with the chance of a request soon; None if an advisor asks for the load."""
    advised = {name for name, active in state.advised.items() if active.prefetch_until > now}
    if not (advised or state.settings.prefetch):
        return
    models = state.models.values()
    cold = [m for m in models if m.residency is None and not (m.removed or m.copy_of) and m.retry_at <= now]
    yield from ((None, model) for model in cold if model.spec.name in advised)
    if state.settings.prefetch:
        chances = [(model.demand.chance_soon(now, state.all_gaps), model) for model in cold]
        likely = (pair for pair in chances if pair[0] >= _PREFETCH_CHANCE)
        yield from sorted(likely, key=lambda pair: (-pair[0], pair[1].spec.name))


def next_instant(state: State, now: float) -> float | None:
    """Return the next instant at which something changes without an event; None if there is none."""
    first = min((instant for instant in _instants(state, now) if instant > now), default=math.inf)
    return None if first == math.inf else first


def _instants(state: State, now: float) -> Iterator[float]:
    for deadlines in (state.deadlines, state.keep_alives, state.reclaims, state.advice_ends):
        due = deadlines.next_after(now)
        if due is not None:
            yield due
    for residency in state.in_state(ResidencyState.DRAINING):
        drained_at = drain_ends_at(state, residency)
        if drained_at is not None:
            yield drained_at
    yield from (each.at + state.settings.drain_limit_s for each in state.draining())
    yield from instants(state)
    yield from ends(state)
    yield from grows_at(state)
    cold = [model for model in state.cold_and_wanted() if model.spec.name not in state.reservations]
    for model in [model for model in cold if model.is_extra]:
        cold.remove(model)
        yield model.retry_at
        if model.tried is not None:
            yield model.tried.again_at
    if not cold:
        return
    yield _next_of_waiting(state, cold, now)
    credit = drain_credit_s(state, now)
    if credit < 1 and state.settings.drain_share > 0:
        yield now + (1 - credit) / state.settings.drain_share + 0.001


def _next_of_waiting(state: State, waiting: Iterable[ModelState], now: float) -> float:
    """Return when the first of these may be tried again, or is overdue: a plain loop, since many may wait."""
    overdue_after_s, first = state.overdue_after_s(), math.inf
    for model in waiting:
        overdue_at = now - longest_wait_s(model, now) + overdue_after_s + 0.001
        if now < overdue_at < first:
            first = overdue_at
        if now < model.retry_at < first:
            first = model.retry_at
        if model.tried is not None and now < model.tried.again_at < first:
            first = model.tried.again_at
    return first


def _on(state: State, device: DeviceId, *, gone: bool = False) -> list[Residency]:
    held = (state.residencies[holder] for holder in state.ledger.holders(device))
    return [residency for residency in held if residency.gone is gone]
