"""Which models are evicted for a cold one: the cheapest whose memory is enough."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Budget, Placement
from cotenant.domain.residencies import ResidencyId, ResidencyState
from cotenant.planning.eviction import Candidate, cheapest_anywhere, cheapest_on_device, freed_by
from cotenant.scheduling.advice import soft_pinned_cost
from cotenant.scheduling.copies.serving import is_spare
from cotenant.scheduling.estimates import served_in_s
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.policy import Victim
from cotenant.scheduling.residence import evictable_from
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.room import Room
from cotenant.scheduling.state import State

MOST_DEVICES: Final = 32
"""How many devices are searched first: those with the models that are idle longest."""
IN_DEMAND_S: Final = 60.0
"""So long after its last request a model is in demand: no further copy of another one takes its room."""
_TIE: Final = 1e-9


def eviction_cost(state: State, residency: Residency, now: float, *, advised: bool = True) -> float:
    """Return what evicting a residency costs by the policy; among equals the longest idle costs least.

    With `advised`, a soft pin of the advisor raises the cost.
    """
    copy = state.models[residency.model]
    model = copy.whole
    victim = Victim(model.spec.name, model.demand, model.load_s, residency.bytes, now, state.all_gaps)
    cost = state.policy(victim) + _TIE / (1 + max(0.0, now - copy.last_used))
    return soft_pinned_cost(state, model.spec.name, now, cost) if advised else cost


@dataclass(frozen=True, slots=True)
class Victims:
    """The models to evict, and the Placement that their memory allows. `searched` is how many devices were
    looked at, None if all that matter were.
    """

    candidates: tuple[Candidate, ...]
    placement: Placement
    searched: int | None = None


@dataclass(slots=True)
class VictimSearch:
    """A search for victims for one model.

    Idle models may be evicted from the instant that `residence` says; for an `overdue` request it does not
    count, and with `in_use` those that serve may go as well. Without `advised`, advice is ignored. `among`
    are the devices to look at, None for all that may help. `costs` are those known already, by residency, and
    are shared by the searches of one instant. `again_at` is the first instant at which a model that is
    protected now may be evicted.

    Copies that their models are served without go first (`spares_only`), also busy ones whose requests should
    end sooner than the load takes. Another copy of a model gets the room of none that is in demand.
    """

    state: State
    model: ModelState
    now: float
    room: Room
    overdue: bool
    crowded: bool
    in_use: bool = False
    advised: bool = True
    among: Sequence[DeviceId] | None = None
    costs: dict[ResidencyId, float] = field(default_factory=dict)
    spares_only: bool = False
    again_at: float = math.inf
    _leaving: set[ResidencyId] = field(init=False)

    def __post_init__(self) -> None:
        reservations = self.state.reservations.values()
        self._leaving = {victim for reservation in reservations for victim in reservation.victims}

    def find(self) -> Victims | None:
        """Return the cheapest sufficient victims on one device, or else on several of one machine.

        Of equally cheap ones those go whose machine loads the model soonest.
        """
        if self.state.copied and not (self.spares_only or self.model.is_extra or self.crowded):
            found = replace(self, spares_only=True).find()
            if found is not None:
                return found
        if not (self.state.idle or self.in_use or self.crowded or self.state.copied):
            return None
        for devices, searched in self._searches():
            by_device = {device: self._candidates_on(device) for device in devices}
            found = self._on_one(by_device) or self._on_several(by_device)
            if found is not None:
                return replace(found, searched=searched)
        return None

    def _searches(self) -> Iterator[tuple[list[DeviceId], int | None]]:
        """Yield the devices to look at, in planned order; how many if more remain for the next search."""
        ledger, allowed = self.state.ledger, self.model.allowed
        if self.among is not None:
            among = [d for d in self.among if d in ledger.readings and (allowed is None or d in allowed)]
            yield sorted(among, key=ledger.devices.place), None
        elif len(ledger.readings) <= MOST_DEVICES or self.crowded or allowed is not None:
            yield [*(ledger.readings if allowed is None else allowed)], None
        else:
            idle_longest = [*islice(self._occupied(), MOST_DEVICES)]
            yield sorted(idle_longest, key=ledger.devices.place), len(idle_longest)
            if len(idle_longest) == MOST_DEVICES:
                yield sorted(self._occupied(), key=ledger.devices.place), None

    def _occupied(self) -> Iterator[DeviceId]:
        """Yield the devices of models that may be evicted, if the model could use these devices at all."""
        state, seen = self.state, set[DeviceId]()
        for residency in state.residencies if self.in_use or state.copied else state.idle:
            for device in state.residencies[residency].devices:
                reading = state.ledger.readings.get(device)
                if reading is not None and device not in seen:
                    seen.add(device)
                    kind = self.room.kind(self.model, device)
                    fits = self.model.needs.fits(kind, reading.capacity_bytes)
                    if fits or self.model.needs.wanted_bytes(kind) is None:
                        yield device

    def _on_one(self, by_device: Mapping[DeviceId, Sequence[Candidate]]) -> Victims | None:
        ledger, room = self.state.ledger, self.room
        enough: list[tuple[float, float, int, tuple[Candidate, ...], Budget]] = []
        for device, candidates in by_device.items():
            budget = ledger.budget(device, busy=device in room.busy, any_number=True)
            wanted = self.model.needs.wanted_bytes(room.kind(self.model, device))
            if budget.left_out is not None or wanted is None or not (candidates or self.crowded):
                continue
            free = ledger.available_bytes(device) + room.freed[device]
            min_victims = ledger.engines_to_remove(device, leaving=room.leaving[device])
            victims = cheapest_on_device(candidates, device, max(wanted - free, 0), min_victims)
            if victims is not None and self.crowded and not victims:
                victims = self._cheapest_one()
            if victims is not None:
                cost = sum(victim.cost for victim in victims)
                room_then = replace(budget, budget_bytes=max(wanted, free))
                load_s = self.model.load_cost_s(budget.device.node)
                enough.append((cost, load_s, len(enough), victims, room_then))
        for _, _, _, victims, budget in sorted(enough, key=lambda each: each[:3]):
            freed, _ = freed_by(victim.bytes_by_device for victim in victims)
            freed.update(room.freed)
            placed = ledger.on_host(self.model.fit([budget]), freed)
            if isinstance(placed, Placement):
                return Victims(victims, placed)
        return None

    def _on_several(self, by_device: Mapping[DeviceId, Sequence[Candidate]]) -> Victims | None:
        nodes = self.state.ledger.devices.nodes()
        if self.model.over_machines:
            nodes = [tuple(self.state.ledger.readings)]
        elif len(nodes) > 1:
            nodes = {self.state.ledger.devices.node_of(device): None for device in by_device}.keys()
        best: tuple[tuple[float, float], Victims] | None = None
        for node in nodes:
            candidates = self._all() if len(nodes) == 1 else self._candidates_in(node)
            found = self._in_node(node, candidates)
            if found is None:
                continue
            victims, placement = found
            if not victims and self.crowded:
                one = self._cheapest_one()
                if one is None:
                    continue
                victims = one
            cost = sum(victim.cost for victim in victims), self.model.load_cost_s(placement.node)
            if best is None or cost < best[0]:
                best = cost, Victims(victims, placement)
        return None if best is None else best[1]

    def _in_node(
        self, node: Sequence[DeviceId], candidates: Sequence[Candidate]
    ) -> tuple[tuple[Candidate, ...], Placement] | None:
        ledger, room, model = self.state.ledger, self.room, self.model

        def then(victims: Sequence[Candidate]) -> tuple[tuple[Budget, ...], Counter[DeviceId]]:
            freed, leaving = freed_by(victim.bytes_by_device for victim in victims)
            freed.update(room.freed)
            leaving.update(room.leaving)
            return ledger.budgets(freed=freed, leaving=leaving, busy=room.busy, among=node), freed

        def fits(victims: Sequence[Candidate]) -> Placement | None:
            budgets, freed = then(victims)
            placed = ledger.on_host(model.fit(budgets), freed)
            return placed if isinstance(placed, Placement) else None

        if not candidates or room.is_hopeless(model, then(candidates)[0]):
            return None
        return cheapest_anywhere(candidates, fits)

    def _all(self) -> list[Candidate]:
        any_state = self.in_use or self.state.copied
        held = sorted(self.state.residencies if any_state else self.state.idle)
        return [*filter(None, (self._candidate(self.state.residencies[each]) for each in held))]

    def _candidates_in(self, node: Sequence[DeviceId], *, alone: bool = False) -> list[Candidate]:
        """Return the candidates on devices; `alone` says that none on others will be a victim."""
        holders = {holder for device in node for holder in self.state.ledger.holders(device)}
        held, on = (self.state.residencies[each] for each in sorted(holders)), node if alone else ()
        return [*filter(None, (self._candidate(residency, on) for residency in held))]

    def _candidates_on(self, device: DeviceId) -> list[Candidate]:
        return self._candidates_in((device,), alone=True)

    def _cheapest_one(self) -> tuple[Candidate, ...] | None:
        """Return the cheapest victim on any device, to stay within the limit of loaded models.

        Of a model with several copies all are victims, or none.
        """
        state, candidates = self.state, {each.residency: each for each in self._all()}
        found = []
        for each in candidates.values():
            model = state.models[state.residencies[each.residency].model]
            copies = [copy.residency for copy in model.copies if copy.residency is not None]
            if model.copy_of is None and all(copy in candidates for copy in copies):
                found.append((each, *(candidates[copy] for copy in copies)))
        return min(found, key=lambda of: (sum(c.cost for c in of), of[0].residency), default=None)

    def _candidate(self, residency: Residency, on: Sequence[DeviceId] = ()) -> Candidate | None:
        """Return a residency as a candidate, with what its eviction costs; None if it may not be evicted."""
        state, model = self.state, self.state.models[residency.model]
        ready = residency.state is ResidencyState.READY and residency.bytes_by_device
        if not ready or model.pinned or model.successor is not None or residency.id in self._leaving:
            return None
        if self.model.is_extra:
            if not self._is_out_of_demand(residency):
                return None
        elif state.copied and not self.crowded and is_spare(state, residency, on):
            cost = self._cost_of_spare(residency)
            return None if cost is None else Candidate(residency.id, cost, residency.bytes_by_device)
        elif self.spares_only:
            return None
        if not self.in_use and (residency.in_flight > 0 or model.whole.queue):
            return None
        if not self.overdue:
            evictable = evictable_from(state, residency, self.model)
            if evictable > self.now:
                self.again_at = min(self.again_at, evictable)
                return None
        cost = self.costs.get(residency.id)
        if cost is None:
            cost = eviction_cost(state, residency, self.now, advised=self.advised)
            cost += residency.in_flight + len(model.queue)
            self.costs[residency.id] = cost
        return Candidate(residency.id, cost, residency.bytes_by_device)

    def _cost_of_spare(self, residency: Residency) -> float | None:
        """Return the cost of a copy that its model is served without; None if it serves for too long.

        One that is free soon is next to nothing, and less the higher its number is.
        """
        left_s = served_in_s(self.state, residency, self.now)
        if left_s <= self.model.load_s:
            return _TIE * (1 + left_s) / self.state.models[residency.model].copy
        return None if self.spares_only else left_s + residency.in_flight

    def _is_out_of_demand(self, residency: Residency) -> bool:
        """Whether another copy of a model may have the room of this one."""
        state, model = self.state, self.state.models[residency.model]
        whole = model.whole
        if residency.in_flight or whole.queue or whole.stays or whole is self.model.whole:
            return False
        if whole.spec.name in state.advised and state.advised[whole.spec.name].pinned_until > self.now:
            return False
        free_at = max(model.last_used, residency.held_since) + IN_DEMAND_S
        if free_at > self.now:
            self.again_at = min(self.again_at, free_at)
        return free_at <= self.now
