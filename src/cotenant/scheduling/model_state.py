"""A served model: its waiting requests, its history, why it is not loaded, and room that is made for it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from cotenant.domain.devices import DeviceId
from cotenant.domain.exit_causes import Cause
from cotenant.domain.nodes import FileState, LoadCost
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyId, TicketId
from cotenant.planning.device_needs import DeviceNeeds, Fit
from cotenant.planning.rooms import Soonness
from cotenant.scheduling.demand import Demand
from cotenant.scheduling.model_spec import ModelSpec


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A waiting request; sorts by priority, then age."""

    order: tuple[int, float, int]
    id: TicketId = field(compare=False)
    model: str = field(compare=False)
    at: float = field(compare=False)
    deadline: float = field(compare=False)
    keep_alive_s: float | None = field(compare=False, default=None)
    conversation: tuple[int, ...] = field(compare=False, default=())


@dataclass(slots=True)
class Attempt:
    """Why a cold model was not placed when it was last tried, for whoever decides when to try again.

    Changes of devices up to `step` are taken into account. `again_at` is when a model that was protected then
    may be evicted. `overdue` says whether it was, `for_host` that host RAM had no room for it, `for_drain`
    that draining was not allowed. On the devices `hope` it would fit next to pinned models alone, on those
    it is `behind` once the loads there are over.
    """

    step: int
    again_at: float
    overdue: bool
    for_host: bool = False
    for_drain: bool = False
    hope: tuple[DeviceId, ...] = ()
    behind: frozenset[DeviceId] = frozenset()


@dataclass(slots=True, eq=False)
class ModelState:
    """A model, its waiting requests and its history.

    `wanted` is why it is to be loaded though no request waits; empty if it is not. `wanted_later` is the
    same for one that does not fit now, and is wanted again with the next Reading. `service_s` is how long
    its requests usually take, None before the first has ended. `needs` are by the spec's `fit`, or by where
    it goes instead; it uses only devices that are `allowed`, None for any, and is `elsewhere` while those
    that it is for are not there. While no machine could hold it, it may be placed `over_machines`. `tried`
    is the last try to place it, None if it has to be tried. `evicted_for` is who needed its room last.
    `residency` serves it. While it moves, `successor` loads elsewhere to take over, and those `leaving` have
    served or were to: they end. `load_costs` are how soon it loads on each node, `soonness` the same, to be
    compared. Those `aside` are on nodes that do not answer: they may serve again. A drained device moves it
    again at `move_again_at`.

    A further copy of a model is a state of its own, number `copy` of `copy_of`: it has residencies, but
    neither requests nor a history of them, which are those of the model, its first copy. The model's `copies`
    are the further ones, by number, loaded or not. `conversations` says which residency has the KV cache of
    which. `placed_by` is what a copy's `needs` were made of (`copies.count`).
    """

    spec: ModelSpec
    needs: DeviceNeeds
    pinned: bool
    allowed: tuple[DeviceId, ...] | None = None
    elsewhere: bool = False
    over_machines: bool = False
    tried: Attempt | None = None
    demand: Demand = field(default_factory=Demand)
    queue: list[Ticket] = field(default_factory=list)
    residency: ResidencyId | None = None
    successor: ResidencyId | None = None
    leaving: set[ResidencyId] = field(default_factory=set)
    aside: set[ResidencyId] = field(default_factory=set)
    move_failures: int = 0
    move_again_at: float = 0.0
    wanted: str = ""
    wanted_later: str = ""
    load_s: float = 0.0
    service_s: float | None = None
    loads: int = 0
    failures: int = 0
    retry_at: float = 0.0
    last_failure: str | None = None
    last_cause: Cause | None = None
    last_used: float = 0.0
    evicted_for: str | None = None
    keep_alive_s: float | None = None
    removed: bool = False
    last_waiting_text: str = ""
    load_costs: Mapping[str, LoadCost] = field(default_factory=dict)
    soonness: Mapping[str | None, Soonness] = field(default_factory=dict, repr=False)
    copy: int = 1
    copy_of: ModelState | None = field(default=None, repr=False)
    copies: list[ModelState] = field(default_factory=list)
    placed_by: tuple[object, ...] = ()
    conversations: OrderedDict[int, ResidencyId] = field(default_factory=OrderedDict)

    @property
    def whole(self) -> ModelState:
        """The model that it is a copy of, or else itself: it has the requests and their history."""
        return self if self.copy_of is None else self.copy_of

    @property
    def is_extra(self) -> bool:
        """Whether it is just another copy of a model: nobody in demand makes room for it."""
        return self.copy_of is not None and not self.pinned

    @property
    def all_copies(self) -> tuple[ModelState, ...]:
        """The model and its further copies, if it is no copy itself."""
        return (self, *self.copies)

    @property
    def fit(self) -> Fit:
        """How it is placed."""
        return self.needs.fit

    def load_cost_s(self, node: str | None) -> float:
        """Return how long it takes to load on a node; as usual if that is unknown, infinite if it cannot."""
        whole = self.whole
        cost = whole.load_costs.get(node or "") if whole.load_costs else None
        return whole.load_s if cost is None else math.inf if cost.seconds is None else cost.seconds

    def set_load_costs(self, costs: Mapping[str, LoadCost]) -> None:
        """Take how soon it loads on each node."""
        self.load_costs = costs
        self.soonness = {
            node: (cost.state is FileState.ABSENT, math.inf if cost.seconds is None else cost.seconds)
            for node, cost in costs.items()
        }

    def expected_load_s(self, node: str | None) -> float:
        """Return how long its load on a node is expected to take."""
        seconds = self.load_cost_s(node)
        return seconds if math.isfinite(seconds) else self.whole.load_s

    @property
    def waits_since(self) -> float | None:
        """When its longest waiting request arrived; None if none waits."""
        if not self.queue:
            return None
        if self.queue[0].order[0] == self.queue[-1].order[0]:
            return self.queue[0].at
        return min(ticket.at for ticket in self.queue)

    @property
    def cold_and_wanted(self) -> bool:
        """Whether it should be loaded and has no residency."""
        return self.residency is None and bool(self.queue or self.wanted)

    @property
    def stays_as(self) -> ResidencyId | None:
        """The residency that it has once it has moved."""
        return self.residency if self.successor is None else self.successor

    @property
    def others(self) -> set[ResidencyId]:
        """Its residencies besides the one that serves it."""
        others = self.leaving | self.aside if self.aside else self.leaving
        return others if self.successor is None else {self.successor, *others}

    @property
    def may_serve(self) -> set[ResidencyId]:
        """The one that serves it, and those that may once their nodes answer."""
        return {*self.aside} if self.residency is None else {self.residency, *self.aside}

    @property
    def residencies(self) -> set[ResidencyId]:
        """All of its residencies."""
        return self.others if self.residency is None else {self.residency, *self.others}

    @property
    def stays(self) -> bool:
        """Whether it is to stay loaded: its engine is replaced if it dies, without a request."""
        stays = (self.spec.preload or self.pinned) and not self.removed
        return stays and not self.spec.guest


@dataclass(frozen=True, slots=True)
class Reload:
    """A move without a successor: a model that was on devices of this name goes to these."""

    devices: frozenset[DeviceId]
    moved_from: str


@dataclass(slots=True)
class Reservation:
    """Room being made for a model: its victims go first. `drains` says that busy ones are among them.

    With `reload` it moves: the only victim is its own residency.
    """

    model: str
    placement: Placement
    bytes_by_device: dict[DeviceId, int]
    victims: set[ResidencyId]
    at: float
    drains: bool = False
    reload: Reload | None = None


def longest_wait_s(model: ModelState, now: float) -> float:
    """Return how long the longest waiting request has waited; 0 if none does."""
    since = model.waits_since
    return 0.0 if since is None else now - since
