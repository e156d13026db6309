"""Worlds of several machines drawn by a seed: all that befalls one machine, and what befalls machines."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from bench.workloads import spec_of

from cotenant.domain.devices import Device, DeviceId
from cotenant.domain.nodes import FileState, LoadCost
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import ONE_COPY
from cotenant.planning.device_needs import Fit
from cotenant.scheduling.events import LoadCostsRead
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.policy import POLICIES
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import NO_FAULTS, Driver, Faults, Machine, card
from cotenant.simulation.nodes import LEASE_S, LOST_S, SUSPECT_S, NodesWorld
from tests.simulation.seeded import (
    SeededWorld,
    _copies,
    _models,
    _requests,
    _Trouble,
    wait_bound_s,
)

_GB: Final = 10**9


@dataclass
class SeededNodes(SeededWorld):
    """A world of several machines."""

    world: NodesWorld


def card_of(node: str, index: int, size: int) -> Device:
    return replace(card(index, size), id=DeviceId(f"GPU-{node}{index}"), node=node)


def seeded_nodes(seed: int, faults: Faults, *, requests: int = 50, feasible: bool = False) -> SeededNodes:
    """Draw machines with their cards, models, requests and troubles; if `feasible`, any machine fits any."""
    rng = Random(f"nodes {seed}")
    sizes = [
        [rng.choice([12, 16, 24]) * _GB for _ in range(rng.choice([1, 1, 2]))]
        for _ in range(rng.choice([2, 2, 3, 4]))
    ]
    cards = [card_of("abcd"[n], i, size) for n, each in enumerate(sizes) for i, size in enumerate(each)]
    most = max(len(each) for each in sizes)
    smallest = min(min(each) for each in sizes)
    roomiest = max((each for each in sizes if len(each) == most), key=min)
    largest = smallest if feasible else max(max(each) for each in sizes)
    models = _models(
        rng, 1 if feasible else most, min(roomiest), largest, astray=faults != NO_FAULTS and not feasible
    )
    pinned = rng.random() < 0.3
    if pinned:
        models = [replace(m, pieces=tuple(round(0.3 * p) for p in m.pieces)) for m in models]
    settings = SchedulerSettings(
        policy=rng.choice([*POLICIES]),
        overdue_s=rng.choice([20.0, 60.0]),
        drain_limit_s=30.0,
        reclaim_bound_s=10.0,
        machines_come=True,
        max_loaded=rng.choice([None, None, None, 3]),
        prefetch=rng.random() < 0.3,
        reserve_bytes=rng.choice([0, _GB // 2]),
        max_queue=20 if faults != NO_FAULTS else 1 << 30,
    )
    # A model that needs a card more than any machine has; not where one is pinned, which may be in its way.
    over = Random(f"over {seed}") if not pinned and len(cards) > most else None
    if over is not None and over.random() < 0.5:
        size = round(over.uniform(0.3, 0.8) * smallest)
        models[-1] = replace(models[-1], pieces=(size,) * (most + 1))
    else:
        over = None
    world = NodesWorld(
        lambda: Scheduler(settings),
        Machine(cards, rng.choice([*Driver])),
        models,
        rng,
        faults=faults,
        tick_s=0.25,
        read_every_s=2.0,
    )
    keep_alive_s = rng.choice([None, 0.0, 15.0, 300.0])
    copying = rng if rng.random() < 0.3 else None
    specs = [spec_of(m, keep_alive_s=keep_alive_s, pinned=pinned and not i) for i, m in enumerate(models)]
    specs = [replace(spec, copies=_copies(copying)) for spec in specs]
    if over is not None:
        specs[-1] = replace(specs[-1], across=_meant(specs[-1].fit), copies=ONE_COPY)
    world.begin(specs)
    mean_gap_s = math.exp(rng.uniform(math.log(0.1), math.log(5)))
    patience_s = rng.choice([30.0, 120.0]) if faults != NO_FAULTS else math.inf
    coming = _requests(rng, models, requests, mean_gap_s)
    world.expect(coming, patience_s)
    if faults.trouble_every_s is not None:
        lasts_s = requests * mean_gap_s
        _Trouble(world, rng, faults.trouble_every_s, lasts_s, copying).begin()
        NodeTrouble(world, rng, rng.choice([4.0, 15.0]), lasts_s).begin()
        FileTrouble(world, Random(f"files {seed}"), lasts_s).begin()
    bound_s = wait_bound_s(models, settings, requests)
    return SeededNodes(seed, world, faults, bound_s, coming[-1].at)


def _meant(fit: Fit) -> Fit:
    """Have a model of several pieces be over machines on purpose."""

    def across(budgets: Sequence[Budget]) -> Placement | Refusal:
        found = fit(budgets)
        over = isinstance(found, Placement) and len(found.nodes) > 1
        return replace(found, link_bytes=1) if over else found

    return across


class FileTrouble:
    """What becomes of the files of models on machines until an instant, at which every machine has them."""

    def __init__(self, world: NodesWorld, rng: Random, until: float) -> None:
        self._world = world
        self._rng = rng
        self._until = until

    def begin(self) -> None:
        """Have the first news come, in half of the worlds."""
        if self._rng.random() < 0.5:
            self._world.queue.after(self._rng.expovariate(1 / 5.0), self._comes)

    def _comes(self) -> None:
        world, rng, over = self._world, self._rng, self._world.queue.now >= self._until

        def cost() -> LoadCost:
            if not over and rng.random() < 0.3:
                return LoadCost(None, FileState.ABSENT, "no file /m.gguf")
            return LoadCost(rng.choice([1.0, 4.0, 40.0]), FileState.LOCAL)

        names = [name for name in world.models if over or rng.random() < 0.5]
        found = {name: {node: cost() for node in world.names if over or rng.random() < 0.8} for name in names}
        world.send(LoadCostsRead(world.queue.now, found))
        if not over:
            world.queue.after(rng.expovariate(1 / 5.0), self._comes)


class NodeTrouble:
    """What befalls machines, and the daemon, until an instant."""

    def __init__(self, world: NodesWorld, rng: Random, every_s: float, until: float) -> None:
        self._world = world
        self._rng = rng
        self._every_s = every_s
        self._until = until

    def begin(self) -> None:
        """Have the first trouble come."""
        self._world.queue.after(self._rng.expovariate(1 / self._every_s), self._comes)

    def _comes(self) -> None:
        if self._world.queue.now >= self._until:
            return
        world, name, rng = self._world, self._rng.choice(self._world.names), self._rng
        kinds: list[Callable[[], None]] = [
            lambda: world.cut(name, rng.uniform(0, SUSPECT_S)),
            lambda: world.cut(name, rng.uniform(SUSPECT_S, LOST_S)),
            lambda: world.cut(name, rng.uniform(SUSPECT_S, LOST_S)),
            lambda: world.cut(name, rng.uniform(LOST_S, LEASE_S)),
            lambda: world.cut(name, rng.uniform(LEASE_S, 1.5 * LEASE_S)),
            lambda: world.kill(name, rng.uniform(1, LEASE_S)),
            lambda: world.end_agent(name),
            lambda: world.greet(name) if not world.is_cut(name) else None,
            lambda: world.appear_twice(name),
            lambda: world.restart_daemon(),
        ]
        rng.choice(kinds)()
        self.begin()
