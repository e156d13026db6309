"""The room for a cold model: what the ledger has free, less what reservations need."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.planning.device_needs import Kind
from cotenant.planning.eviction import freed_by
from cotenant.planning.host_memory import on_host
from cotenant.planning.rooms import Rank, place_of, rank
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.state import State


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
        altered = {*busy, *self.freed, *self.leaving} & self._ledger.readings.keys()
        self._altered = {self._ledger.devices.place(device): device for device in altered}

    def choose(
        self, model: ModelState, nodes: Iterable[Sequence[DeviceId]] | None = None
    ) -> Placement | Refusal:
        """Place a model on one device if it fits there, else on several of one machine, of `nodes` if given.

        The first unused device that fits is taken, in planned order; else the fullest one that still fits, so
        that larger models find contiguous room. A model that is better spread than packed is placed on all
        devices of a machine at once.
        """
        host = self._ledger.host_budget(self.freed)
        if not model.spec.together:
            alone = self._alone(model)
            if alone is not None:
                return on_host(alone, host)
        refusal: Refusal | None = None
        for node in (self._ledger.devices.nodes() or [()]) if nodes is None else nodes:
            budgets = self.budgets(node)
            if budgets and self.is_hopeless(model, budgets):
                continue
            found = model.fit(budgets)
            if isinstance(found, Placement):
                return on_host(found, host)
            refusal = refusal or found
        return refusal or Refusal(model.spec.name, "no machine has room for its weights")

    def budgets(self, node: Sequence[DeviceId]) -> tuple[Budget, ...]:
        """Return what may be planned on the devices of a machine."""
        return self._ledger.budgets(freed=self.freed, leaving=self.leaving, busy=self.busy, among=node)

    def is_hopeless(self, model: ModelState, budgets: Sequence[Budget]) -> bool:
        """Whether not even the weights of a model fit on these devices together."""
        room = sum(budget.budget_bytes for budget in budgets)
        return room < model.needs.least_bytes(self.kind(model, budgets[0].device.id))

    def kind(self, model: ModelState, device: DeviceId) -> Kind:
        """Return what a model's planner tells a device by: itself if the model may use only some."""
        return self._ledger.devices.kind(device, single=model.allowed is not None)

    def _alone(self, model: ModelState) -> Placement | None:
        """Place a model on the best single device; None if it fits on none."""
        ledger, ranks = self._ledger, list[Rank]()
        if model.allowed is None:
            best = ledger.rooms().best(model.needs, self._altered.keys())
            ranks = [] if best is None else [best]
        used = ledger.claimed_devices()
        for device in self._altered.values() if model.allowed is None else model.allowed:
            budget = self._budget(device)
            if budget.left_out is None and model.needs.fits(self.kind(model, device), budget.budget_bytes):
                ranks.append(rank(ledger.devices.place(device), budget.budget_bytes, used=device in used))
        if not ranks:
            return None
        placed = model.fit([self._budget(ledger.devices.order[place_of(min(ranks))])])
        return placed if isinstance(placed, Placement) else None

    def _budget(self, device: DeviceId) -> Budget:
        freed, leaving = self.freed.get(device, 0), self.leaving.get(device, 0)
        return self._ledger.budget(device, freed, leaving, busy=device in self.busy)


def reserved(state: State) -> tuple[Counter[DeviceId], Counter[DeviceId]]:
    """Return what reservations need beyond what their victims still hold: bytes and engines, as negatives."""
    reserved_bytes: Counter[DeviceId] = Counter()
    reserved_engines: Counter[DeviceId] = Counter()
    for reservation in state.reservations.values():
        victims = (state.residencies[victim].bytes_by_device for victim in reservation.victims)
        freed, leaving = freed_by(victims)
        for device, count in reservation.bytes_by_device.items():
            reserved_bytes[device] -= max(0, count - freed[device])
            reserved_engines[device] -= max(0, 1 - leaving[device])
    return reserved_bytes, reserved_engines
