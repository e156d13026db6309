"""Worlds drawn by a seed, in which everything may go wrong; the scheduler's laws must hold in all of them."""

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Final

from bench.workloads import spec_of

from cotenant.domain.residencies import Copies, ResidencyState
from cotenant.scheduling import events
from cotenant.scheduling.commands import Command, PublishDecision
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.policy import POLICIES
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.closed_loop import HABITS
from cotenant.simulation.machine import NO_FAULTS, Driver, Faults, Machine, card
from cotenant.simulation.models import Client, Outcome, Request, SimulatedModel
from cotenant.simulation.world import ContractViolation, World

_GB: Final = 10**9
_TICK_S: Final = 0.25
_READ_EVERY_S: Final = 2.0
_LONGEST_SERVICE_S: Final = 10.0
_RARELY: Final = 30.0
_TURNS: Final = 20

ALL_FAULTS = Faults(
    slow_load=0.1,
    failed_load=0.08,
    death=0.2,
    hang=0.1,
    slow_end=0.15,
    late_memory=0.2,
    lost_memory=0.05,
    leaves_waiting=0.1,
    leaves_served=0.1,
    trouble_every_s=20.0,
)


class SimulationFailure(AssertionError):
    """A law or a promise did not hold: the message names the seed, and tells the last steps."""


@dataclass
class SeededWorld:
    """A world, its seed, and the bound on the wait of any request if nothing goes wrong."""

    seed: int
    world: World
    faults: Faults
    wait_bound_s: float
    last_at_s: float

    @property
    def ends_by_s(self) -> float:
        """When the last request has ended at the latest."""
        return self.last_at_s + self.wait_bound_s + 2 * _LONGEST_SERVICE_S

    def run(self) -> World:
        """Run to the end of the last request. Raises SimulationFailure."""
        try:
            self.world.run(until=self.ends_by_s)
            self.check_end()
        except Exception as fault:
            timeline = self.world.timeline
            told = "\n".join(timeline.lines()) if timeline else ""
            raise SimulationFailure(f"seed {self.seed}: {type(fault).__name__}: {fault}\n{told}") from fault
        return self.world

    def check_end(self) -> None:
        """Check that nothing is left. Raises ContractViolation."""
        state = self.world.scheduler.state
        if state.tickets or state.leases or self.world.open_requests:
            raise ContractViolation(
                f"after the end, {len(state.tickets)} wait and {len(state.leases)} are served"
            )
        for client in self.world.clients.values():
            if client.outcome is None:
                raise ContractViolation(f"{client} never ended")
            if self.faults == NO_FAULTS:
                self._ended_well(client)
        if self.faults == NO_FAULTS and self.world.totals.out_of_memory:
            raise ContractViolation("law 1: a load ran out of memory, though footprints are right")

    def _ended_well(self, client: Client) -> None:
        """Check law 6: what fits is granted, within the bound."""
        if client.outcome is not Outcome.SERVED or client.granted_at is None:
            raise ContractViolation(f"law 6: {client} was not served though nothing went wrong")
        wait = client.granted_at - client.request.at
        if wait > self.wait_bound_s:
            raise ContractViolation(f"law 6: {client} waited {wait:.0f} s of {self.wait_bound_s:.0f} s")


def seeded_world(
    seed: int, faults: Faults, *, requests: int = 50, feasible: bool = False, copies: bool = False
) -> SeededWorld:
    """Draw cards, models, requests and what befalls them; if `feasible`, all fit, as planned.

    With `copies`, models may have several, and how many changes: most are smaller, and have one slot.
    """
    rng = Random(seed)
    cards = [card(index, rng.choice([12, 16, 24]) * _GB) for index in range(rng.choice([1, 2, 2, 3]))]
    smallest, largest = (sorted(c.total_bytes or 0 for c in cards)[i] for i in (0, -1))
    models = _models(rng, len(cards), smallest, largest, astray=faults != NO_FAULTS and not feasible)
    copying = Random(f"copies {seed}") if copies else None
    if copying is not None:
        models = [replace(_scaled(m, copying.choice([0.3, 0.6, 1.0])), slots=1) for m in models]
    pinned = faults != NO_FAULTS and rng.random() < (0.5 if feasible else 0.2)
    if pinned and feasible:
        # The first is to stay loaded: it is small, and every other one fits next to it.
        scales = [0.15 * smallest / models[0].bytes, *[0.8] * len(models)]
        models = [_scaled(model, scale) for model, scale in zip(models, scales, strict=False)]
    settings = SchedulerSettings(
        policy=rng.choice([*POLICIES]),
        overdue_s=rng.choice([20.0, 60.0]),
        drain_limit_s=30.0,
        reclaim_bound_s=10.0,
        max_loaded=rng.choice([None, None, None, 2]),
        prefetch=rng.random() < 0.3,
        reserve_bytes=rng.choice([0, _GB // 2]),
        max_queue=20 if faults != NO_FAULTS else 1 << 30,
    )
    world = World(
        Scheduler(settings),
        Machine(cards, rng.choice([*Driver])),
        models,
        rng,
        faults=faults,
        tick_s=_TICK_S,
        read_every_s=_READ_EVERY_S,
    )
    keep_alive_s = rng.choice([None, 0.0, 15.0, 300.0])
    specs = [spec_of(m, keep_alive_s=keep_alive_s, pinned=pinned and not i) for i, m in enumerate(models)]
    world.begin([replace(spec, copies=_copies(copying)) for spec in specs])
    mean_gap_s = math.exp(rng.uniform(math.log(0.1), math.log(5)))
    patience_s = rng.choice([30.0, 120.0]) if faults != NO_FAULTS else math.inf
    coming = _requests(rng, models, requests, mean_gap_s)
    world.expect(coming, patience_s)
    turns = _closed_loop_clients(world, Random(f"clients {seed}"), coming[-1].at, patience_s)
    if faults.trouble_every_s is not None:
        _Trouble(world, rng, faults.trouble_every_s, requests * mean_gap_s, copying).begin()
    return SeededWorld(seed, world, faults, wait_bound_s(models, settings, requests + turns), coming[-1].at)


class Mover:
    """Moves loaded models at random until an instant, and with `drains` cards are drained now and then."""

    def __init__(self, seeded: SeededWorld, every_s: float, *, drains: bool) -> None:
        self._world = seeded.world
        self._rng = Random(seeded.seed)
        self._every_s = every_s
        self._until = seeded.last_at_s
        self._kinds = [self._move] * 6 + [self._cancel] + [self._drain] * drains
        self.outcomes: Counter[object] = Counter()
        handle = seeded.world.scheduler.handle

        def counted(event: events.Event) -> list[Command]:
            commands = handle(event)
            told = [each.decision for each in commands if isinstance(each, PublishDecision)]
            self.outcomes.update(each.facts["outcome"] for each in told if "outcome" in each.facts)
            return commands

        seeded.world.scheduler.handle = counted  # type: ignore[method-assign]
        self._again()

    def _again(self) -> None:
        self._world.queue.after(self._rng.expovariate(1 / self._every_s), self._comes)

    def _comes(self) -> None:
        if self._world.queue.now < self._until:
            self._rng.choice(self._kinds)()
            self._again()

    def _move(self) -> None:
        residencies = self._world.scheduler.state.residencies.values()
        ready = [each for each in residencies if each.state is ResidencyState.READY]
        if not ready:
            return
        moved = self._rng.choice(ready)
        cards = [each.id for each in self._world.machine.cards]
        others = [each for each in cards if each not in moved.devices]
        to = (
            [self._rng.choice(others)]
            if others and len(moved.devices) == 1
            else self._rng.sample(cards, 2 % len(cards) + 1)
        )
        self._world.send(events.MoveAsked(self._world.queue.now, moved.model, frozenset(to)))

    def _cancel(self) -> None:
        for name, model in self._world.scheduler.state.models.items():
            if model.successor is not None:
                self._world.send(events.MoveCancelled(self._world.queue.now, name))
                return

    def _drain(self) -> None:
        card = self._rng.choice(self._world.machine.cards)
        self._world.send(events.DrainsChanged(self._world.queue.now, frozenset({card.id})))
        lasts_s = self._rng.uniform(5, _RARELY)
        self._world.queue.after(lasts_s, self.undrain)

    def undrain(self) -> None:
        """Have every card used again."""
        self._world.send(events.DrainsChanged(self._world.queue.now, frozenset()))


def _copies(rng: Random | None) -> Copies:
    most = 1 if rng is None else rng.choice([1, 2, 2, 3])
    return Copies(most if rng is not None and rng.random() < 0.3 else 1, most)


def _models(rng: Random, cards: int, smallest: int, largest: int, *, astray: bool) -> list[SimulatedModel]:
    """Draw models that each fit the empty machine; with `astray` they take up to 30 % more or less."""
    models = []
    for index in range(rng.randint(2, 7)):
        wide = cards > 1 and rng.random() < 0.2
        size = round(rng.uniform(0.1, 0.95) * (smallest - _GB // 2 if wide else largest - _GB // 2))
        models.append(
            SimulatedModel(
                f"m{index}",
                (size, size // 2) if wide else (size,),
                load_s=1 + size / (2 * _GB),
                decode_per_s=rng.choice([30.0, 100.0]),
                slots=rng.choice([1, 2, 4]),
                truth=rng.uniform(0.7, 1.3) if astray else 1.0,
            )
        )
    return models


def _scaled(model: SimulatedModel, by: float) -> SimulatedModel:
    return replace(model, pieces=tuple(round(by * piece) for piece in model.pieces))


def _requests(rng: Random, models: list[SimulatedModel], count: int, mean_gap_s: float) -> list[Request]:
    """Draw requests of skewed popularity, each served in at most ten seconds."""
    weights = [1 / (rank + 1) ** 1.5 for rank in range(len(models))]
    at = 0.0
    requests = []
    for _ in range(count):
        at += rng.expovariate(1 / mean_gap_s) if rng.random() < 0.8 else 0.0
        (model,) = rng.choices(models, weights)
        tokens = rng.randint(1, round(9 * model.decode_per_s))
        requests.append(Request(at, model.name, rng.randint(1, 1000), tokens, rng.choice([0, 0, 0, 1])))
    return requests


def _closed_loop_clients(world: World, rng: Random, until: float, patience_s: float) -> int:
    """Have up to three clients ask some models again and again; return how many requests they are at most."""
    habits = rng.choices([*HABITS.values()], k=rng.choice([0, 1, 3]))
    for habit in habits:
        names = rng.sample(sorted(world.models), min(len(world.models), rng.choice([1, 2, 3])))
        turns = (
            replace(turn, request=_short(turn.request, world.models[turn.request.model]))
            for turn in habit(names, rng, rng.choice([0.1, 0.5, 2.0]))
        )
        world.visit(islice(turns, _TURNS), until, patience_s)
    return len(habits) * _TURNS


def _short(request: Request, model: SimulatedModel) -> Request:
    return replace(request, output_tokens=min(request.output_tokens, round(9 * model.decode_per_s)))


def wait_bound_s(models: Collection[SimulatedModel], settings: SchedulerSettings, requests: int) -> float:
    """Return how long a request may wait if nothing fails: law 6.

    Once overdue, a model's oldest request waits for the turns of those overdue before it. A turn is credit
    for a drain, a load under way, the drain, the victims' end, and a load of its own. Then requests in line
    before it are served, and the model may lose its place to every other one while they are.
    """
    load_s = 2 * max(model.load_s for model in models)
    credit_s = 1 / settings.drain_share
    turn_s = credit_s + load_s + min(_LONGEST_SERVICE_S, settings.drain_limit_s) + 1.0 + load_s
    rounds = 1 + math.ceil(requests / len(models))
    return settings.overdue_s + len(models) * turn_s * rounds


class _Trouble:
    """What befalls the cards, and what operators do, until an instant; then all is put right."""

    def __init__(
        self, world: World, rng: Random, every_s: float, until: float, copying: Random | None
    ) -> None:
        self._copying = copying
        self._world = world
        self._rng = rng
        self._every_s = every_s
        self._until = until
        self._names = sorted(world.models)
        models = world.scheduler.state.models
        self._free = [name for name in self._names if not models[name].spec.pinned]

    def begin(self) -> None:
        """Have the first trouble come."""
        self._world.queue.after(self._rng.expovariate(1 / self._every_s), self._comes)

    def _comes(self) -> None:
        if self._world.queue.now >= self._until:
            return
        kinds: list[Callable[[], None]] = [
            self._others_take,
            self._others_take,
            self._card_is_lost,
            self._card_is_silent,
            self._mps_dies,
            self._pin,
            self._load,
            self._unload,
            self._reload,
        ]
        self._rng.choice(kinds)()
        self.begin()

    def _others_take(self) -> None:
        card = self._rng.choice(self._world.machine.cards)
        count = round(self._rng.random() * (card.total_bytes or 0))
        self._world.machine.set_foreign(card.id, count)
        self._world.queue.after(
            self._rng.uniform(5, _RARELY), lambda: self._world.machine.set_foreign(card.id, 0)
        )

    def _card_is_lost(self) -> None:
        card = self._rng.choice(self._world.machine.cards)
        self._world.lose(card.id)
        self._world.queue.after(
            self._rng.uniform(5, _RARELY), lambda: self._world.machine.missing.discard(card.id)
        )

    def _card_is_silent(self) -> None:
        card = self._rng.choice(self._world.machine.cards)
        self._world.machine.silent.add(card.id)
        self._world.queue.after(self._rng.uniform(2, 6), lambda: self._world.machine.silent.discard(card.id))

    def _mps_dies(self) -> None:
        card = self._rng.choice(self._world.machine.cards)
        self._world.end_engines(card.id, "its MPS daemon died", 1.0)

    def _pin(self) -> None:
        name = self._rng.choice(self._free)
        self._world.send(events.PinAsked(self._world.queue.now, name, True))
        self._world.queue.after(
            self._rng.uniform(5, _RARELY),
            lambda: self._world.send(events.PinAsked(self._world.queue.now, name, False)),
        )

    def _load(self) -> None:
        self._world.send(events.LoadAsked(self._world.queue.now, self._rng.choice(self._free)))

    def _unload(self) -> None:
        self._world.send(events.UnloadAsked(self._world.queue.now, self._rng.choice(self._free)))

    def _reload(self) -> None:
        now = self._world.queue.now
        specs = [self._world.scheduler.state.models[name].spec for name in self._names]
        changed = self._rng.choice(self._names)
        specs = [replace(s, keep_alive_s=20.0) if s.name == changed else s for s in specs]
        replaced = frozenset({changed})
        if self._copying is not None and self._copying.random() < 0.7:
            specs = [replace(s, copies=_copies(self._copying)) if s.name == changed else s for s in specs]
            replaced = frozenset()
        self._world.send(events.ModelsChanged(now, tuple(specs), replaced))
