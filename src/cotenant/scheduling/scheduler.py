"""The scheduler: events in, commands out."""

from cotenant.domain.decisions import DecisionKind, WaitEstimate
from cotenant.domain.residencies import LeaseId, RefusalCode, ResidencyId, ResidencyState, UnloadReason
from cotenant.domain.units import format_duration
from cotenant.planning.device_needs import DeviceNeeds
from cotenant.planning.ledger import Ledger
from cotenant.scheduling import events, guests, moves, nodes
from cotenant.scheduling.advice import apply_advice, expire_advice
from cotenant.scheduling.commands import Command, WakeAt
from cotenant.scheduling.copies.count import (
    is_pinned_copy,
    keep_first_copies,
    serve_copies,
    settle_copies,
)
from cotenant.scheduling.copies.serving import in_flight, remember_conversation, serving, with_free_slot
from cotenant.scheduling.estimates import expire, wait_estimate
from cotenant.scheduling.housekeeping import (
    end_drains,
    next_instant,
    prefetch,
    read_devices,
    release_returned,
    unload_expired,
)
from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.placing import choose_fits, fulfil_reservations, schedule
from cotenant.scheduling.policy import POLICIES, Policy
from cotenant.scheduling.requests import (
    arrive,
    dispatch,
    end_lease,
    grant,
    refuse,
    released,
)
from cotenant.scheduling.reservations import cancel
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import Outbox, State
from cotenant.scheduling.transitions import became_ready, exited, lower_claim, resume, unload_when_idle

_BEFORE_PIN = (UnloadReason.OPERATOR, "unloaded before it was pinned")
_STABLE_S = 30.0
_DEATHS_WITHOUT_PAUSE = 4


class Scheduler:
    """Decides what is loaded where, who is served and who waits.

    Pure in its events: the same events give the same commands. `try_grant` and `release` are the hot path for
    a model that is ready with a free slot; they have the effect of RequestArrived and LeaseReleased, in
    O(1). `policy` replaces the one that the settings name.
    """

    def __init__(self, settings: SchedulerSettings, policy: Policy | None = None) -> None:
        self.state = State(
            settings,
            Ledger(settings.reserve_bytes),
            policy or POLICIES[settings.policy],
            drain_credit_s=settings.drain_limit_s,
        )
        self._wake_at: float | None = None

    def handle(self, event: events.Event) -> list[Command]:
        """Process one event. Raises UnknownModel for a name that is not served."""
        state, out = self.state, Outbox(self.state, event.at, type(event).__name__)
        match event:
            case events.GuestAsked():
                guests.ask(state, event, out)
            case events.GuestEnded(_, name, why):
                guests.end(state, name, why, out)
            case events.RequestArrived():
                arrive(state, event, out)
            case events.LeaseReleased():
                released(state, event.lease, out)
            case events.RequestLeft():
                if event.ticket in state.tickets:
                    state.dequeue(state.tickets[event.ticket])
            case events.DevicesRead():
                read_devices(state, event, out)
            case events.NodeSilent():
                nodes.silent(state, event, out)
            case events.NodeLost():
                nodes.lost(state, event, out)
            case events.NodeBack():
                nodes.back(state, event, out)
            case events.EngineFound():
                nodes.found(state, event, out)
            case events.TimerFired():
                self._wake_at = None
                release_returned(state, out)
            case events.EngineReady():
                residency = state.residencies.get(event.residency)
                if residency is not None and residency.state is ResidencyState.LOADING:
                    model = state.models[residency.model]
                    if residency.id in model.aside:
                        nodes.became_ready_aside(state, residency, event.placement, out)
                    else:
                        became_ready(state, residency, out, event.placement)
                        moves.finish(state, residency, out)
                        dispatch(state, model.whole, out)
            case events.EngineExited():
                self._engine_exited(event, out)
            case events.LoadCostsRead(_, by_model):
                changed = [state.models[name] for name in by_model if name in state.models]
                for model in changed:
                    model.set_load_costs(by_model[model.spec.name])
                choose_fits(state, changed)
            case events.ModelsChanged():
                self._models_changed(event, out)
            case events.LoadAsked():
                model = state.model(event.model)
                model.wanted = ""
                if model.residency is None:
                    state.want(model, event.why)
                model.retry_at, model.last_used = 0.0, event.at
            case events.UnloadAsked():
                model = state.model(event.model)
                stays = "; it is pinned, so its next load stays" if model.pinned else ""
                why = f"unloaded: the operator asked for it{stays}"
                for copy in model.all_copies:
                    moves.cancel_move(state, copy, out, "it is unloaded")
                    copy.wanted, copy.wanted_later = "", ""
                    for each in sorted(copy.residencies):
                        unload_when_idle(state, state.residencies[each], out, UnloadReason.OPERATOR, why)
            case events.PinAsked():
                self._pin_asked(event, out)
            case events.MoveAsked(_, name, devices):
                moves.ask(state, state.model(name), devices, out)
            case events.MoveCancelled(_, name):
                moves.cancel_move(state, state.model(name), out, "it is to stay where it is")
            case events.DrainsChanged(_, devices):
                moves.drains_changed(state, devices, out)
            case events.AdviceGiven():
                apply_advice(state, event.advice, out)
            case events.WarmChanged(_, name, kept_bytes, why):
                if name in state.models:
                    out.publish(DecisionKind.WARM, name, why, bytes=kept_bytes)
            case events.StopAsked():
                self._stop_asked(out)
        self._settle(out)
        return out.commands

    def try_grant(
        self, name: str, at: float, keep_alive_s: float | None = None, conversation: tuple[int, ...] = ()
    ) -> tuple[LeaseId, ResidencyId] | None:
        """Grant a lease if the model is ready, with a free slot and an empty queue. Raises UnknownModel.

        With several copies it is on the one that has the `conversation`, or the least busy one.
        """
        state = self.state
        model = state.model(name)
        if model.queue or state.stopping:
            return None
        if model.copies:
            found = with_free_slot(state, model, conversation)
            if found is None:
                return None
            residency, used = found, in_flight(state, model) > 0
            remember_conversation(model, conversation, residency)
        else:
            if model.residency is None:
                return None
            residency = state.residencies[model.residency]
            if residency.state is not ResidencyState.READY or residency.in_flight >= residency.slots:
                return None
            used = bool(residency.leases)
        if not used:
            model.demand.idle_times.append(at - model.last_used)
        model.demand.arrive(at, state.all_gaps)
        state.waits.append(0.0)
        return grant(state, model, residency, keep_alive_s, at), residency.id

    def release(self, lease: LeaseId, at: float) -> list[Command]:
        """End a lease; LeaseReleased is handled as an event only if a request waits or the model leaves."""
        state = self.state
        holder = state.leases.get(lease)
        if holder is not None and not state.awaiting_room:
            residency = state.residencies[holder]
            model = state.models[residency.model]
            queue = model.queue if model.copy_of is None else model.copy_of.queue
            if residency.state is ResidencyState.READY and not queue:
                del state.leases[lease]
                end_lease(state, residency, lease, at)
                return self._wake_for(residency, at)
        return self.handle(events.LeaseReleased(at, lease))

    def wait_estimate(self, name: str, now: float) -> WaitEstimate | None:
        """Return what the last waiting request may expect; None if one would be served at once."""
        model = self.state.model(name)
        if with_free_slot(self.state, model) is not None:
            return None
        return wait_estimate(self.state, model, now)

    def _settle(self, out: Outbox) -> None:
        state = self.state
        expire(state, out)
        expire_advice(state, out.at)
        unload_expired(state, out)
        end_drains(state, out)
        settle_copies(state, out)
        fulfil_reservations(state, out)
        moves.continue_moves(state, out)
        schedule(state, out)
        guests.settle(state, out)
        prefetch(state, out)
        keep_first_copies(state)
        state.awaiting_room = state.models_await_room() or moves.awaits_room(state)
        instant = next_instant(state, out.at)
        if instant is not None and instant != self._wake_at:
            self._wake_at = instant
            out.add(WakeAt(instant))

    def _wake_for(self, residency: Residency, at: float) -> list[Command]:
        model = self.state.models[residency.model]
        keep = self.state.keep_alive_s(model)
        # A timer that is due and has not fired yet must not be replaced: requests may end by it.
        if residency.in_flight or keep is None:
            return []
        self.state.keep_alives.watch(residency.id, at + keep)
        if self._wake_at is not None and self._wake_at <= at + keep:
            return []
        self._wake_at = at + keep
        return [WakeAt(self._wake_at)]

    def _engine_exited(self, event: events.EngineExited, out: Outbox) -> None:
        residency = self.state.residencies.get(event.residency)
        if residency is None or residency.state is ResidencyState.RECLAIMING:
            return
        model = self.state.models[residency.model]
        if residency.state is ResidencyState.LOADING and residency.moved_from is not None:
            moves.failed(self.state, residency, event.why, event.cause, out)
        if residency.id == model.successor:
            pass
        elif residency.id in model.leaving or residency.id in model.aside:
            if residency.in_flight:
                text, cause = f"an engine that it had has ended: {event.why}", event.cause.value
                out.publish(DecisionKind.FAILED, residency.model, text, cause=cause)
            unserved = residency.id in model.aside and model.residency is None and not self.state.stopping
            if unserved and model.stays and residency.pending_unload is None:
                self.state.want(model, "its engine has ended, and it is to stay loaded")
        elif residency.state is ResidencyState.LOADING:
            self._failed(model, event, out)
            if residency.adopted and model.stays and not self.state.stopping:
                self.state.want(model, "its engine has died, and it is to stay loaded")
            if model.retry_at > event.at and not any(serving(self.state, model)):
                wait_s = model.retry_at - event.at
                refuse(self.state, model.queue, RefusalCode.LOAD_FAILED, event.why, out, wait_s, event.cause)
                if not model.stays:
                    model.wanted = ""
        elif residency.state is not ResidencyState.UNLOADING:
            if residency.ready_at is not None and event.at - residency.ready_at >= _STABLE_S:
                model.failures = 0
            served = residency.in_flight > 0
            self._failed(model, event, out, served=served, reason=UnloadReason.ENGINE_DIED.value)
            if model.stays and residency.pending_unload is None and not self.state.stopping:
                self.state.want(model, "its engine has died, and it is to stay loaded")
        exited(self.state, residency, out)

    def _failed(
        self,
        model: ModelState,
        event: events.EngineExited,
        out: Outbox,
        *,
        served: bool = False,
        **facts: str,
    ) -> None:
        """Record a failure. The first one is retried at once; later ones after pauses that double.

        An engine that died while it served may have died of one request, which must not lock out the others:
        pauses begin later then, after deaths without one answer between them.
        """
        settings = self.state.settings
        model.failures += 1
        model.last_failure, model.last_cause = event.why, event.cause
        doublings = model.failures - (_DEATHS_WITHOUT_PAUSE if served else 1) - 1
        pause = min(settings.backoff_limit_s, settings.backoff_s * 2.0**doublings) if doublings >= 0 else 0.0
        model.retry_at = event.at + pause
        again = f"; next attempt in {format_duration(pause)} at the earliest" if pause else ""
        text, cause = f"{event.why.rstrip('.')}{again}", event.cause.value
        out.publish(DecisionKind.FAILED, model.spec.name, text, failures=model.failures, cause=cause, **facts)

    def _models_changed(self, event: events.ModelsChanged, out: Outbox) -> None:
        state = self.state
        state.changed_at = event.at
        served = {spec.name: spec for spec in event.models}
        for name, spec in served.items():
            self._serve(name, spec)
        choose_fits(state, (state.models[name] for name in served))
        others = (
            {name for name, model in state.models.items() if model.copy_of}
            | state.guests.keys()
            | served.keys()
        )
        for name in [name for name in state.models if name not in others]:
            self._remove(name, out)
        for model in [state.models[name] for name in event.replaced & served.keys()]:
            for copy in model.all_copies:
                moves.cancel_move(state, copy, out, "its configuration changed")
                for residency in (state.residencies[each] for each in sorted(copy.may_serve)):
                    if residency.gone:
                        continue
                    state.want(copy, "its configuration changed")
                    why = "unloaded: its configuration changed"
                    unload_when_idle(state, residency, out, UnloadReason.CHANGED, why)

    def _serve(self, name: str, spec: ModelSpec) -> None:
        known = self.state.models.get(name)
        if known is None:
            needs = DeviceNeeds(spec.fit)
            known = ModelState(spec, needs, pinned=spec.pinned, load_s=spec.load_s)
            self.state.models[name] = known
        if known.spec.pinned != spec.pinned:
            known.pinned = spec.pinned
        known.spec, known.removed = spec, False
        serve_copies(self.state, known)
        for copy in known.all_copies:
            for each in sorted(copy.residencies - copy.leaving):
                residency = self.state.residencies[each]
                residency.slots = spec.slots
                lower_claim(self.state, residency, spec.seen_bytes)
                self.state.watch_keep_alive(known)

    def _remove(self, name: str, out: Outbox) -> None:
        model = self.state.models[name]
        moves.cancel_move(self.state, model, out, "it is not served any more")
        model.removed, model.wanted, model.wanted_later, model.pinned = True, "", "", False
        refuse(self.state, model.queue, RefusalCode.REMOVED, f"{name} is not served any more", out)
        if not model.residencies:
            if not model.copies:
                self.state.forget_model(name)
            return
        why = "unloaded: it is not served any more"
        for each in sorted(model.may_serve):
            unload_when_idle(self.state, self.state.residencies[each], out, UnloadReason.REMOVED, why)

    def _pin_asked(self, event: events.PinAsked, out: Outbox) -> None:
        model = self.state.model(event.model)
        model.pinned = event.pinned
        self.state.watch_keep_alive(model)
        residency = self.state.residency_of(model)
        if residency is not None:
            self.state.touch(residency.bytes_by_device, resized=False)
        moving = (
            model.spec.name in self.state.reservations and self.state.reservations[model.spec.name].reload
        )
        for copy in model.all_copies if event.pinned else ():
            for residency in (self.state.residencies[each] for each in sorted(copy.residencies)):
                stays = residency.id == copy.residency and (copy is model or is_pinned_copy(copy))
                if residency.pending_unload is None or (moving and copy is model):
                    continue
                if stays:
                    self._cancel_unload(copy, residency, out)
                elif residency.gone:
                    residency.pending_unload = _BEFORE_PIN
        text = "pinned: it stays loaded" if event.pinned else "no longer pinned"
        out.publish(DecisionKind.PINNED, event.model, text)

    def _cancel_unload(self, model: ModelState, residency: Residency, out: Outbox) -> None:
        """Keep a model that was to be unloaded; if its engine is stopping already, it is loaded again."""
        for reservation in [r for r in self.state.reservations.values() if residency.id in r.victims]:
            cancel(self.state, reservation, out)
        resume(self.state, residency, out.at)
        if residency.state is not ResidencyState.READY:
            residency.pending_unload = _BEFORE_PIN
            self.state.want(model, "it was pinned while it was unloaded")

    def _stop_asked(self, out: Outbox) -> None:
        self.state.stopping = True
        for name in [*self.state.guests]:
            guests.end(self.state, name, "the daemon is shutting down", out)
        for model in [*self.state.models.values()]:
            model.wanted, model.wanted_later = "", ""
            refuse(self.state, model.queue, RefusalCode.STOPPING, "the daemon is shutting down", out)
        why = "unloaded: the daemon is shutting down"
        for residency in [*self.state.residencies.values()]:
            unload_when_idle(self.state, residency, out, UnloadReason.SHUTDOWN, why)
