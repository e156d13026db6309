"""The room for a cold model: what the ledger has free, less what reservations need."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from typing import Final

from cotenant.domain.devices import DeviceId, host_id
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.units import format_bytes
from cotenant.planning.device_needs import Kind
from cotenant.planning.host_memory import on_host
from cotenant.planning.machines import more_on_gpus
from cotenant.planning.rooms import Soonest, Soonness, place_of, rank
from cotenant.scheduling.model_state import Attempt, ModelState
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.state import State

MOST_NODES: Final = 32
"""For a model of several devices that was not tried before, so many machines are looked at: the roomiest."""


class Room:
    """What may be planned now, or with what is `also` freed, without what is reserved and on `busy` devices.

    `freed` and `leaving` are bytes and engines by device, negative for what reservations need beyond what
    their victims still hold.
    """

    def __init__(
        self,
        state: State,
        busy: Collection[DeviceId] = (),
        also_freed: Mapping[DeviceId, int] | None = None,
        also_leaving: Mapping[DeviceId, int] | None = None,
    ) -> None:
        self._ledger = state.ledger
        self.busy = busy
        self.freed, self.leaving = reserved(state)
        self.freed.update(also_freed or {})
        self.leaving.update(also_leaving or {})
        known, place = self._ledger.readings, self._ledger.devices.place
        self._altered = {
            place(device): self._budget(device)
            for device in {*self.freed, *self.leaving}
            if device in known and device not in busy
        }
        self._not_indexed = {*self._altered, *(place(device) for device in busy if device in known)}
        self._by_node: dict[Sequence[DeviceId], tuple[Budget, ...]] = {}
        self._roomiest: Sequence[Sequence[DeviceId]] | None = None
        self._most_altered: dict[Kind, int] | None = None

    def choose(
        self, model: ModelState, nodes: Iterable[Sequence[DeviceId]] | None = None
    ) -> Placement | Refusal:
        """Place a model on one device if it fits there, else on several of one machine, of `nodes` if given.

        The first unused device that fits is taken, in planned order; else the fullest one that still fits, so
        that larger models find contiguous room. Devices of machines that have its files go before all others;
        and of unused ones, or of used ones, those first on whose machine it loads soonest. A model that is
        better spread than packed is placed on all devices of a machine at once. Of more than `MOST_NODES`
        machines those with the most room are tried. One that no machine could hold is placed over several, if
        it may be.
        """
        if not (model.spec.together or model.over_machines):
            alone = self._alone(model)
            placed = None if alone is None else self._ledger.on_host(alone, self.freed)
            if placed is not None and (isinstance(placed, Placement) or len(self._ledger.hosts) < 2):
                return placed
        refusal: Refusal | None = None
        best: Placement | None = None
        machines = [*(self._roomiest_nodes() if nodes is None else nodes)]
        if model.over_machines:
            machines = [tuple(device for node in self._roomiest_nodes() for device in node)]
        elif order := self._order(model):
            name_of = self._ledger.devices.name_of_node
            machines.sort(key=lambda node: order[name_of(node[0])])
        for node in machines:
            budgets = self.budgets(node)
            if budgets and self.is_hopeless(model, budgets):
                continue
            found = model.fit(budgets)
            if isinstance(found, Placement):
                found = self._ledger.on_host(found, self.freed)
            if isinstance(found, Placement):
                best = more_on_gpus(best, found)
                if best.all_on_gpus or not model.spec.together:
                    break
            else:
                refusal = refusal or found
        return best or refusal or Refusal(model.spec.name, "no machine has room for its weights")

    def _roomiest_nodes(self) -> Sequence[Sequence[DeviceId]]:
        """Return the machines with the most room, in planned order; without any, one that has no device."""
        if self._roomiest is None:
            nodes = [*self._ledger.devices.nodes()] or [()]
            self._roomiest = nodes if len(nodes) <= MOST_NODES else self._with_most_room(nodes)
        return self._roomiest

    def _with_most_room(self, nodes: Sequence[Sequence[DeviceId]]) -> list[Sequence[DeviceId]]:
        rooms, order, readings = self._ledger.rooms(), self._ledger.devices.order, self._ledger.readings
        sums = rooms.of_nodes.copy()
        for place in self._not_indexed:
            altered = self._altered.get(place)
            room = altered.budget_bytes if altered else 0
            sums[readings[order[place]].device.node] += room - rooms.room(place)
        by_node = [sums[name] for name in self._ledger.devices.node_names()]
        return [
            nodes[index] for index in sorted(nlargest(MOST_NODES, range(len(nodes)), by_node.__getitem__))
        ]

    def budgets(self, node: Sequence[DeviceId]) -> tuple[Budget, ...]:
        """Return what may be planned on the devices of a machine."""
        found = self._by_node.get(node)
        if found is None:
            found = self._ledger.budgets(freed=self.freed, leaving=self.leaving, busy=self.busy, among=node)
            self._by_node[node] = found
        return found

    def is_hopeless(self, model: ModelState, budgets: Sequence[Budget]) -> bool:
        """Whether not even the weights of a model fit on these devices together."""
        room = sum(budget.budget_bytes for budget in budgets)
        return room < model.needs.least_bytes(self.kind(model, budgets[0].device.id))

    def kind(self, model: ModelState, device: DeviceId) -> Kind:
        """Return what a model's planner tells a device by: itself if the model may use only some."""
        return self._ledger.devices.kind(device, single=model.allowed is not None)

    def _alone(self, model: ModelState) -> Placement | None:
        """Place a model on the best single device; None if it fits on none."""
        ledger, ranks = self._ledger, list[Soonest]()
        named, order = model.allowed, self._order(model)
        if named is None:
            rooms = ledger.rooms()
            if order:
                soonest = rooms.soonest(model.needs, self._not_indexed, order)
                ranks = [] if soonest is None else [soonest]
            else:
                best = rooms.best(model.needs, self._not_indexed)
                ranks = [] if best is None else [(False, best[0], 0.0, best)]
        used = ledger.claimed_devices()
        for budget in self._altered_for(model) if named is None else map(self._budget, named):
            device = budget.device.id
            if budget.left_out is None and model.needs.fits(self.kind(model, device), budget.budget_bytes):
                ranked = rank(ledger.devices.place(device), budget.budget_bytes, used=device in used)
                fetched, seconds = order.get(budget.device.node, (False, 0.0))
                if seconds != math.inf:
                    ranks.append((fetched, ranked[0], seconds, ranked))
        if not ranks:
            return None
        placed = model.fit([self._budget(ledger.devices.order[place_of(min(ranks)[3])])])
        return placed if isinstance(placed, Placement) else None

    def _altered_for(self, model: ModelState) -> Iterable[Budget]:
        """Return the devices that are not as the ledger has them; none if the model fits on none of them."""
        if self._most_altered is None:
            self._most_altered = {}
            for budget in self._altered.values():
                if budget.left_out is None:
                    kind = self._ledger.devices.kind(budget.device.id)
                    self._most_altered[kind] = max(self._most_altered.get(kind, 0), budget.budget_bytes)
        fits = any(model.needs.fits(kind, room) for kind, room in self._most_altered.items())
        return self._altered.values() if fits else ()

    def _order(self, model: ModelState) -> Mapping[str | None, Soonness]:
        """Return how soon a model loads on each machine; nothing if that is the same on all."""
        known, usual = model.whole.soonness, (False, model.whole.load_s)
        if not known:
            return {}
        order = {node: known.get(node, usual) for node in self._ledger.devices.node_names()}
        return order if len({*order.values()}) > 1 else {}

    def _budget(self, device: DeviceId) -> Budget:
        freed, leaving = self.freed.get(device, 0), self.leaving.get(device, 0)
        return self._ledger.budget(device, freed, leaving, busy=device in self.busy)


def reserved(state: State) -> tuple[Counter[DeviceId], Counter[DeviceId]]:
    """Return what reservations need beyond what their victims still hold: bytes and engines, as negatives."""
    reserved_bytes: Counter[DeviceId] = Counter()
    reserved_engines: Counter[DeviceId] = Counter()
    for reservation in state.reservations.values():
        victims = [state.residencies[victim].bytes_by_device for victim in reservation.victims]
        for device, count in reservation.bytes_by_device.items():
            held = [victim[device] for victim in victims if device in victim]
            if count > sum(held):
                reserved_bytes[device] -= count - sum(held)
            if not held:
                reserved_engines[device] -= 1
    return reserved_bytes, reserved_engines


def never_fits(state: State, model: ModelState, tried: Attempt | None = None) -> str | None:
    """Return the planner's reason if the model does not fit even without all models that are not pinned."""
    ledger = state.ledger

    def fits(devices: Sequence[DeviceId]) -> Placement | Refusal:
        return on_emptied_host(state, model.fit([_emptied(state, device) for device in devices]))

    def fits_alone(device: DeviceId) -> bool:
        kind = ledger.devices.kind(device, single=model.allowed is not None)
        reading = ledger.readings[device]
        if model.load_cost_s(reading.device.node) == math.inf:
            return False
        if not model.needs.fits(kind, reading.capacity_bytes):
            return False
        budget = _emptied(state, device)
        fits_there = budget.left_out is None and model.needs.fits(kind, budget.budget_bytes)
        return fits_there and (not ledger.hosts or isinstance(fits((device,)), Placement))

    tried = tried or Attempt(state.step, math.inf, overdue=False)
    singly: Iterable[DeviceId] = ledger.readings if model.allowed is None else model.allowed
    if len(tried.hope) > 1 and isinstance(fits(tried.hope), Placement):
        return None
    for device in () if model.spec.together or model.over_machines else (*tried.hope[:1], *singly):
        if fits_alone(device):
            tried.hope = (device,)
            return None
    reason = ""
    nodes = [tuple(ledger.readings)] if model.over_machines else ledger.devices.nodes() or [()]
    for node in nodes:
        result = fits(node)
        if isinstance(result, Placement):
            tried.hope = node
            return None
        reason = reason or result.reason
    pinned = [r for r in state.residencies.values() if _stays(state, r)]
    if not pinned:
        return reason
    names = ", ".join(
        f"{r.model} ({'leased' if r.guest else 'pinned'})" for r in sorted(pinned, key=lambda r: r.model)
    )
    reason = f"next to {names}: {reason}"
    full = ledger.full(Counter({device: _leaving(state, device) for device in ledger.readings}))
    return "; ".join((reason, *(text for text in full if text.partition(": ")[2] not in reason)))


def obstacles(state: State) -> list[str]:
    """Return which devices are lost or not used, and what others hold of those that are there."""
    ledger = state.ledger
    found = [f"{reading.device.label} is lost" for reading in ledger.lost.values()]
    for device, reading in ledger.readings.items():
        if device in ledger.drained:
            found.append(f"{reading.device.label} is drained")
        if held := ledger.foreign_bytes(device):
            who = reading.holders or "not named by the driver"
            found.append(f"other processes hold {format_bytes(held)} of {reading.device.label}: {who}")
    return [*found, *ledger.silent.values()]


def _stays(state: State, residency: Residency) -> bool:
    """Whether a residency is pinned where it is: one that moves has left its devices soon."""
    model = state.models[residency.model]
    return model.pinned and not residency.gone and residency.id == model.stays_as


def _emptied(state: State, device: DeviceId) -> Budget:
    """Return a device's budget with pinned models alone; Readings do not count, since they lag behind.

    A node that is silent may answer again soon, and then counts as the others.
    """
    ledger = state.ledger
    budget = ledger.budget(device, leaving=_leaving(state, device), silent_too=True)
    if budget.left_out is not None:
        return budget
    room = (
        ledger.readings[device].capacity_bytes - ledger.foreign_bytes(device) - _pinned_bytes(state, device)
    )
    return replace(budget, budget_bytes=max(0, room - budget.device.reserve(ledger.reserve_bytes)))


def on_emptied_host(
    state: State, placement: Placement | Refusal, *, bare: bool = False
) -> Placement | Refusal:
    """Return a placement if its part in host RAM fits next to pinned models alone, or `bare` in all of it."""
    if isinstance(placement, Refusal):
        return placement
    budget = state.ledger.host_budget({}, placement.node)
    if budget is None:
        return placement
    reading = state.ledger.hosts[host_id(placement.node)]
    host = reading.device.id
    room = reading.capacity_bytes - reading.device.reserve(state.ledger.reserve_bytes)
    if not bare:
        room -= state.ledger.foreign_bytes(host) + _pinned_bytes(state, host)
    return on_host(placement, replace(budget, budget_bytes=max(0, room)))


def _leaving(state: State, device: DeviceId) -> int:
    """Return how many engines of a device may go."""
    return sum(not _stays(state, state.residencies[holder]) for holder in state.ledger.holders(device))


def _pinned_bytes(state: State, device: DeviceId) -> int:
    stay = (holder for holder in state.ledger.holders(device) if _stays(state, state.residencies[holder]))
    return sum(state.ledger.claims[holder].bytes_by_device[device] for holder in stay)
