"""Anything may happen in any order: the laws hold after every step, and no wait is forgotten."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from cotenant.domain.advisors import Advice, Hint
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.residencies import ResidencyId, ResidencyState, UnloadReason
from cotenant.scheduling import events, invariants
from cotenant.scheduling.policy import POLICIES
from tests.scheduling.harness import GB, Bench, card, fit_nowhere, fit_over, model

FAR = ["far", "far-pinned"]
"""Models of other servers, which take no memory here."""

NAMES = ["a", "b", "c", "wide", "huge", *FAR]
FEASIBLE = [name for name in NAMES if name != "huge"]
SERVED_AGAIN_WITHIN_S = 900
"""The longest pause after failures, three times `overdue_s`, and the turns of the others."""
FOR_ROOM = (UnloadReason.EVICTED, UnloadReason.OVERCOMMITTED, UnloadReason.DEVICE_LOST)


class Machine(RuleBasedStateMachine):
    tickets = Bundle("tickets")

    @initialize(
        policy=st.sampled_from([*POLICIES]),
        live=st.booleans(),
        prefetch=st.booleans(),
        max_loaded=st.sampled_from([None, 2]),
    )
    def build(self, policy: str, live: bool, prefetch: bool, max_loaded: int | None) -> None:
        self.cards = [card(0, 16), card(1, 10)]
        self.live = live
        self.foreign = {0: 0.0, 1: 0.0}
        self.admits: dict[int, int | None] = {}
        self.models = [
            model("a", 6, slots=2),
            model("b", 9, keep_alive_s=40.0),
            model("c", 5, pinned=True),
            model("wide", 0, fit=fit_over([9 * GB, 7 * GB])),
            model("huge", 30),
            model("far", 0, fit=fit_nowhere, keep_alive_s=20.0),
            model("far-pinned", 0, fit=fit_nowhere, slots=2, pinned=True),
        ]
        self.max_loaded = max_loaded
        self.bench = Bench.of(
            self.models,
            self.cards,
            policy=policy,
            prefetch=prefetch,
            max_loaded=max_loaded,
            overdue_s=60.0,
            drain_limit_s=30.0,
        )
        self.asked = 0
        self.left = 0
        self.seen: set[ResidencyId] = set()

    @rule(
        target=tickets, name=st.sampled_from(NAMES), priority=st.integers(-1, 1), wait_s=st.integers(1, 300)
    )
    def ask(self, name: str, priority: int, wait_s: int) -> int:
        self.asked += 1
        return self.bench.ask(name, priority=priority, wait_s=wait_s)

    @rule(ticket=tickets)
    def finish(self, ticket) -> None:
        if ticket in self.bench.granted:
            self.bench.done(ticket)
            self.left += 1

    @rule(ticket=tickets)
    def leave(self, ticket) -> None:
        if ticket in self.bench.state.tickets:
            self.bench.send(events.RequestLeft(self.bench.now, ticket))
            self.left += 1

    @precondition(lambda self: self.bench.loading)
    @rule(data=st.data(), fails=st.booleans())
    def load_ends(self, data: st.DataObject, fails: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.bench.loading)))
        if fails:
            self.bench.die(name, "could not be loaded")
        else:
            self.bench.ready(name)

    @precondition(lambda self: self.bench.stopping)
    @rule(data=st.data())
    def engine_goes(self, data: st.DataObject) -> None:
        self.bench.gone(data.draw(st.sampled_from(sorted(self.bench.stopping))))

    @rule(data=st.data())
    def engine_dies(self, data: st.DataObject) -> None:
        residencies, ending = self.bench.state.residencies, {*self.bench.stopping.values()}
        alive = sorted(r.id for r in residencies.values() if r.ready_at is not None and r.ended_at is None)
        alive = [residency for residency in alive if residency not in ending]
        if alive:
            residency = data.draw(st.sampled_from(alive))
            self.bench.send(events.EngineExited(self.bench.now, ResidencyId(residency), "killed"))

    @rule(
        index=st.integers(0, 1),
        gb=st.sampled_from([0, 0, 2, 8]),
        lost=st.booleans(),
        admits=st.sampled_from([None, None, 1, 2]),
    )
    def read(self, index: int, gb: int, lost: bool, admits: int | None) -> None:
        self.foreign[index] = gb
        self.admits[index] = admits
        present = [c for c in self.cards if not (lost and c.index == index)]
        holding = {r.id: r.bytes for r in self.bench.state.residencies.values() if r.ended_at is None}
        facts = {"engine_bytes": holding} if self.live else {}
        self.bench.read(*present, foreign=self.foreign, live=self.live, admits=self.admits, **facts)

    @rule()
    def lose_every_card(self) -> None:
        self.bench.read(live=self.live)

    @rule(seconds=st.floats(0.1, 90))
    def wait(self, seconds: float) -> None:
        self.bench.wait(seconds)

    @rule(name=st.sampled_from(NAMES), pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.bench.send(events.PinAsked(self.bench.now, name, pinned))

    @rule(name=st.sampled_from(NAMES), load=st.booleans())
    def operate(self, name: str, load: bool) -> None:
        kind = events.LoadAsked if load else events.UnloadAsked
        self.bench.send(kind(self.bench.now, name))

    @rule(name=st.sampled_from(NAMES), indices=st.sets(st.integers(0, 1), min_size=1))
    def move(self, name: str, indices: set[int]) -> None:
        """Whoever is served before a move begins is served after it, in the same step."""
        model = self.bench.state.models[name]
        before = self.bench.state.residency_of(model)
        self.bench.move(name, *indices)
        if model.successor is not None:
            assert before is not None
            assert self.bench.state.residency_of(model) is before
            assert before.state is ResidencyState.READY

    @rule(name=st.sampled_from(NAMES))
    def stay(self, name: str) -> None:
        self.bench.send(events.MoveCancelled(self.bench.now, name))
        assert self.bench.state.models[name].successor is None

    @rule(indices=st.sets(st.integers(0, 1)))
    def drain(self, indices: set[int]) -> None:
        self.bench.drain(*indices)

    @rule(replaced=st.sets(st.sampled_from(NAMES), max_size=2))
    def configure(self, replaced: set[str]) -> None:
        self.bench.send(events.ModelsChanged(self.bench.now, tuple(self.models), frozenset(replaced)))

    @rule(
        hints=st.dictionaries(
            st.sampled_from([*NAMES, "nobody"]),
            st.builds(
                Hint,
                loads=st.integers(0, 3),
                keep_alive_factor=st.floats(),
                soft_pin_s=st.floats(),
                prefetch=st.booleans(),
            ),
        ),
        age_s=st.sampled_from([0.0, 5.0, 500.0, -5.0]),
        shadow=st.sampled_from([False, False, True]),
    )
    def advise(self, hints: dict[str, Hint], age_s: float, shadow: bool) -> None:
        now = self.bench.now
        before = {**self.bench.state.advised}
        evicted = len(self.bench.told(DecisionKind.EVICT))
        self.bench.send(events.AdviceGiven(now, Advice(now - age_s, hints, shadow=shadow)))
        assert len(self.bench.told(DecisionKind.EVICT)) == evicted, "advice itself evicts nobody"
        if shadow:
            assert self.bench.state.advised.keys() <= before.keys()

    @invariant()
    def laws_hold(self) -> None:
        if not hasattr(self, "bench"):
            return
        state = self.bench.state
        invariants.check(state)
        ended = len(self.bench.granted) + len(self.bench.refused) + self.left
        assert ended + len(state.tickets) == self.asked

    @invariant()
    def nothing_is_loaded_where_it_is_drained(self) -> None:
        if not hasattr(self, "bench"):
            return
        state = self.bench.state
        for residency in state.residencies.values():
            if residency.state is ResidencyState.LOADING and residency.id not in self.seen:
                assert not state.ledger.drained & residency.bytes_by_device.keys()
            self.seen.add(residency.id)

    @invariant()
    def what_takes_no_memory_is_in_nobodys_way_and_nobody_in_its(self) -> None:
        if not hasattr(self, "bench"):
            return
        state = self.bench.state
        for name in FAR:
            far, residency = state.models[name], state.residency_of(state.models[name])
            assert name not in state.reservations, "no room is made for it"
            if residency is None:
                assert not far.queue or far.retry_at > self.bench.now, "it waits for nothing but its server"
                continue
            assert not state.ledger.claims[residency.id].bytes_by_device
            assert residency.state is not ResidencyState.RECLAIMING, "it has no bytes to be seen back"
            assert residency.pending_unload is None or residency.pending_unload[0] not in FOR_ROOM
        if self.max_loaded is not None:
            assert state.loaded_count() <= self.max_loaded

    def teardown(self) -> None:
        """Let everything go well from here on: every wait must end, and whatever fits is served (law 7)."""
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        bench.drain()
        bench.read(*self.cards, live=self.live, admits=self.admits)
        for _ in range(200):
            self.all_goes_well()
            if not bench.state.tickets:
                break
        self.laws_hold()
        assert not bench.state.tickets, "somebody still waits though everything goes well"
        for name in NAMES:
            bench.send(events.PinAsked(bench.now, name, pinned=False))
        for name in FEASIBLE:
            self.is_served_again(name)

    def all_goes_well(self) -> None:
        bench = self.bench
        for name in sorted(bench.stopping):
            bench.gone(name)
        for name in sorted(bench.loading):
            bench.ready(name)
        for ticket in sorted(bench.granted):
            bench.done(ticket)
            self.left += 1
        bench.wait(5)
        bench.read(*self.cards, live=self.live, engine_bytes={} if self.live else None, admits=self.admits)

    def is_served_again(self, name: str) -> None:
        """Ask for a model, and come back when a refusal says."""
        bench, since, left = self.bench, self.bench.now, self.left
        ticket = self.ask(name, 0, SERVED_AGAIN_WITHIN_S)
        while self.left == left:
            if ticket in bench.refused:
                again_s = bench.refused[ticket].retry_after_s
                assert again_s is not None, f"{bench.refused[ticket]} does not say when to come back"
                bench.wait(again_s)
                ticket = self.ask(name, 0, SERVED_AGAIN_WITHIN_S)
            self.all_goes_well()
            assert bench.now - since < SERVED_AGAIN_WITHIN_S, f"{name} is served no more"


class MovingMachine(Machine):
    """The same with models that are loaded more often than not, on cards with room, and are moved."""

    @rule(name=st.sampled_from(["a", "b", "c"]), leases=st.integers(0, 2))
    def be_loaded(self, name: str, leases: int) -> None:
        """Have a model loaded, with requests under way."""
        for loading in sorted(self.bench.loading):
            self.bench.ready(loading)
        for _ in range(leases):
            self.ask(name, 0, 300)
        self.bench.send(events.LoadAsked(self.bench.now, name))
        if name in self.bench.loading:
            self.bench.ready(name)

    @rule(name=st.sampled_from(["a", "b", "c"]), leases=st.integers(0, 2))
    def move_away(self, name: str, leases: int) -> None:
        """Move a loaded model to the card that it is not on, if the last one that moved leaves room."""
        self.be_loaded(name, leases)
        for gone in sorted(self.bench.stopping):
            self.bench.gone(gone)
        residency = self.bench.state.residency_of(self.bench.state.models[name])
        on = {int(device[-1]) for device in residency.devices} if residency is not None else {0}
        self.move(name, {0, 1} - on or {0})


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestMachine = pytest.mark.slow(Machine.TestCase)
MovingMachine.TestCase.settings = settings(max_examples=75, stateful_step_count=60, deadline=None)
TestMovingMachine = pytest.mark.slow(MovingMachine.TestCase)
