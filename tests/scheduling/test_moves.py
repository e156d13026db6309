"""A model moves and is served all the time; who cannot move so is told so, and no request ends with it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import Device, DeviceId
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.moves import MoveMethod
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import ResidencyState, UnloadReason
from cotenant.planning.device_choice import Fit
from cotenant.scheduling import events
from cotenant.scheduling.moves import moves, plan_drain, plan_move
from tests.scheduling.harness import GB, Bench, card, fit_nowhere, fit_over, fit_whole, model

TWO = [card(0), card(1)]


def outcomes(bench: Bench) -> list[object]:
    return [d.facts["outcome"] for d in bench.story if "outcome" in d.facts]


def serving(bench: Bench, gb: float = 10, **facts: object) -> Bench:
    """A model on GPU 0 of two."""
    bench = Bench.of([model("a", gb, slots=4, **facts), model("b", 20)], TWO)
    bench.touch("a")
    assert bench.where("a") == ["GPU-0"]
    return bench


@pytest.fixture
def bench() -> Bench:
    return serving(Bench.of([], TWO))


def plan(bench: Bench, name: str, *indices: int):
    return plan_move(bench.state, bench.state.models[name], devices(*indices))


def devices(*indices: int) -> frozenset[DeviceId]:
    return frozenset(DeviceId(f"GPU-{index}") for index in indices)


def test_a_successor_takes_over_in_one_step_and_old_requests_end_where_they_are(bench: Bench) -> None:
    old = bench.load("a", requests=2)
    bench.move("a", 1)
    assert bench.where("a") == ["GPU-0"]
    during = bench.ask("a")
    assert during in bench.granted, "it is served while it moves"
    assert bench.state.ledger.claimed_bytes(DeviceId("GPU-0")) == 10 * GB
    assert bench.state.ledger.claimed_bytes(DeviceId("GPU-1")) == 10 * GB
    bench.ready("a")
    assert bench.where("a") == ["GPU-1"]
    assert bench.ask("a") in bench.granted, "the next request goes to the new one"
    assert "a" not in bench.stopping, "the old one has requests"
    for ticket in (*old, during):
        bench.done(ticket)
    bench.gone("a")
    assert bench.state.ledger.claimed_bytes(DeviceId("GPU-0")) == 0
    assert outcomes(bench) == ["live"]
    assert len(bench.state.residencies) == 1


def test_requests_in_line_go_to_the_successor_when_it_is_ready(bench: Bench) -> None:
    bench.load("a", requests=4)
    waiting = [bench.ask("a") for _ in range(3)]
    bench.move("a", 1)
    assert not {*waiting} & bench.granted.keys()
    bench.ready("a")
    assert {*waiting} <= bench.granted.keys()


def test_a_successor_that_fails_is_not_noticed_and_costs_its_model_no_pause(bench: Bench) -> None:
    (ticket,) = bench.load("a")
    bench.move("a", 1)
    bench.die("a", "out of memory")
    assert outcomes(bench) == ["failed"]
    assert bench.where("a") == ["GPU-0"]
    assert bench.state.models["a"].retry_at == 0
    assert bench.state.ledger.claimed_bytes(DeviceId("GPU-1")) == 0
    assert ticket in bench.granted
    bench.move("a", 1)
    bench.ready("a")
    assert bench.where("a") == ["GPU-1"], "the operator may try again"


def test_if_the_old_one_dies_meanwhile_requests_wait_for_the_successor(bench: Bench) -> None:
    bench.load("a")
    old = bench.state.models["a"].residency
    bench.move("a", 1)
    bench.send(events.EngineExited(bench.now, old, "killed"))
    waiting = bench.ask("a")
    assert waiting not in bench.granted
    assert waiting not in bench.refused
    assert bench.where("a") == ["GPU-1"]
    bench.ready("a")
    assert waiting in bench.granted
    assert outcomes(bench) == ["reload"], "nobody served for a while"


def test_if_both_die_the_move_has_failed_and_the_model_is_loaded_as_ever(bench: Bench) -> None:
    old = bench.state.models["a"].residency
    bench.move("a", 1)
    bench.send(events.EngineExited(bench.now, old, "killed"))
    assert moves(bench.state, bench.state.models["a"])
    bench.die("a")
    assert outcomes(bench) == ["failed"]
    assert not moves(bench.state, bench.state.models["a"])
    bench.wait(10)
    assert bench.load("a")[0] in bench.granted


def test_if_the_old_one_s_card_goes_requests_wait_for_the_successor(bench: Bench) -> None:
    bench.move("a", 1)
    bench.read(card(1))
    assert bench.where("a") == ["GPU-1"]
    assert not bench.state.models["a"].wanted
    bench.ready("a")
    assert bench.where("a") == ["GPU-1"]


def test_if_the_successor_s_card_goes_the_old_one_stays(bench: Bench) -> None:
    bench.move("a", 1)
    bench.read(card(0))
    assert bench.where("a") == ["GPU-0"]
    assert not bench.state.models["a"].wanted, "nothing is to be loaded"
    bench.gone("a")
    assert bench.ask("a") in bench.granted


def test_a_move_that_is_cancelled_leaves_nothing(bench: Bench) -> None:
    bench.move("a", 1)
    bench.send(events.MoveCancelled(bench.now, "a"))
    bench.gone("a")
    assert bench.where("a") == ["GPU-0"]
    assert outcomes(bench) == ["cancelled"]
    assert len(bench.state.residencies) == 1
    bench.wait(1000)
    assert "a" in bench.stopping, "its keep-alive ends as before"


@pytest.mark.parametrize(
    "event",
    [
        events.UnloadAsked(0.0, "a"),
        events.ModelsChanged(0.0, (model("b", 20),)),
        events.ModelsChanged(0.0, (model("a", 9), model("b", 20)), frozenset({"a"})),
        events.StopAsked(0.0),
    ],
)
def test_what_ends_a_model_ends_its_move(bench: Bench, event: events.Event) -> None:
    bench.move("a", 1)
    bench.send(event)
    assert all(r.state is ResidencyState.UNLOADING for r in bench.state.residencies.values())
    assert len(bench.stopping) == 2


def test_an_idle_model_is_not_unloaded_while_it_moves(bench: Bench) -> None:
    bench.move("a", 1)
    bench.wait(400)
    assert "a" not in bench.stopping
    bench.ready("a")
    bench.gone("a")
    bench.wait(301)
    assert "a" in bench.stopping


def test_a_model_that_moves_is_not_evicted_and_counts_once() -> None:
    bench = Bench.of([model("a", 10), model("b", 20)], TWO, max_loaded=2)
    bench.touch("a")
    bench.move("a", 1)
    assert bench.state.loaded_count() == 1
    ticket = bench.ask("b")
    assert not bench.stopping
    bench.load("a")
    bench.gone("a")
    bench.ready("b")
    assert ticket in bench.granted


def test_what_does_not_fit_twice_is_loaded_again_and_told_so_beforehand() -> None:
    bench = Bench.of([model("wide", 0, fit=fit_over([12 * GB, 12 * GB]), slots=2)], [*TWO, card(2)])
    (ticket,) = bench.load("wide")
    found = plan(bench, "wide", 1, 2)
    assert found.method is MoveMethod.LIVE
    bench.read(*TWO, card(2), foreign={2: 12})
    bench.read(*TWO, card(2), foreign={1: 8, 2: 8})
    found = plan(bench, "wide", 1, 2)
    assert found.method is MoveMethod.RELOAD
    assert "do not fit at once" in found.text
    bench.move("wide", 1, 2)
    waiting = bench.ask("wide")
    assert waiting not in bench.granted
    bench.done(ticket)
    bench.gone("wide")
    bench.ready("wide")
    assert bench.where("wide") == ["GPU-1", "GPU-2"]
    assert waiting in bench.granted
    assert outcomes(bench) == ["reload"]


def test_a_reload_gives_up_if_requests_do_not_end() -> None:
    bench = Bench.of([model("wide", 0, fit=fit_over([12 * GB, 12 * GB]))], [*TWO, card(2)])
    (ticket,) = bench.load("wide")
    bench.read(*TWO, card(2), foreign={1: 8, 2: 8})
    bench.move("wide", 1, 2)
    bench.wait(61)
    assert outcomes(bench) == ["failed"]
    assert bench.state.residency_of(bench.state.models["wide"]).state is ResidencyState.READY
    bench.done(ticket)
    assert bench.ask("wide") in bench.granted


@pytest.mark.parametrize(
    ("name", "indices", "why"),
    [
        ("a", [0], "there already"),
        ("b", [1], "not loaded"),
        ("far", [1], "elsewhere"),
        ("c", [1], "loading"),
    ],
)
def test_why_a_model_does_not_move(name: str, indices: list[int], why: str) -> None:
    specs = [model("a", 10), model("b", 20), model("far", 0, fit=fit_nowhere), model("c", 3)]
    bench = Bench.of(specs, TWO)
    bench.touch("a")
    bench.touch("far")
    bench.ask("c")
    bench.move(name, *indices)
    assert outcomes(bench) == ["refused"]
    (text,) = bench.told(DecisionKind.MOVE, name)
    assert why in text


def test_a_model_whose_daemon_decides_where_it_is_does_not_move(bench: Bench) -> None:
    residency = bench.state.residency_of(bench.state.models["a"])
    ollama = replace(residency.placement.recipe, engine=EngineKind.OLLAMA)
    residency.placement = replace(residency.placement, recipe=ollama)
    bench.move("a", 1)
    assert outcomes(bench) == ["refused"]
    assert "the daemon of its engine" in bench.told(DecisionKind.MOVE, "a")[0]


def test_who_asks_for_a_model_with_only_drained_cards_is_told_so_and_when_to_come_back(bench: Bench) -> None:
    bench.drain(0, 1)
    bench.gone("a")
    refusal = bench.refused[bench.ask("a")]
    assert "GPU 0 card is drained" in refusal.text
    assert refusal.retry_after_s
    bench.drain(1)
    assert bench.load("a")[0] in bench.granted
    assert bench.where("a") == ["GPU-0"]


def test_a_model_with_a_fallback_goes_elsewhere_while_its_card_is_drained() -> None:
    def only_first(budgets: Sequence[Budget]) -> Placement | Refusal:
        return fit_whole(10 * GB)([budget for budget in budgets if budget.device.index == 0])

    def elsewhere(present: Sequence[Device]) -> Fit | None:
        return None if any(device.index == 0 for device in present) else fit_whole(10 * GB)

    bench = Bench.of([model("a", 10, fit=only_first, elsewhere=elsewhere)], TWO)
    bench.touch("a")
    bench.drain(0)
    bench.ready("a")
    assert bench.where("a") == ["GPU-1"]


def test_a_model_that_does_not_fit_stays_and_evicts_nobody(bench: Bench) -> None:
    bench.touch("b")
    assert bench.where("b") == ["GPU-1"]
    bench.move("a", 1)
    assert outcomes(bench) == ["refused"]
    assert not bench.stopping


def test_the_plan_tells_the_bytes_during_and_after(bench: Bench) -> None:
    found = plan(bench, "a", 1)
    assert [(d.uuid, d.now_bytes, d.during_bytes, d.after_bytes) for d in found.devices] == [
        ("GPU-0", 10 * GB, 10 * GB, 0),
        ("GPU-1", 0, 10 * GB, 10 * GB),
    ]
    assert found.expected_s is not None
    assert not bench.state.models["a"].successor, "a plan changes nothing"


def test_a_drained_card_is_left_live_and_takes_nothing_new(bench: Bench) -> None:
    bench.drain(0)
    bench.ready("a")
    bench.gone("a")
    assert bench.where("a") == ["GPU-1"]
    bench.load("a")
    ticket = bench.ask("b")
    assert ticket not in bench.granted
    assert "b" not in bench.loading, "GPU 0 has room, and is drained"
    bench.drain()
    bench.ready("b")
    assert bench.where("b") == ["GPU-0"]
    assert ticket in bench.granted


def test_who_fits_nowhere_else_leaves_a_drained_card_once_it_is_idle(bench: Bench) -> None:
    bench.touch("b")
    tickets = bench.load("a", requests=2)
    bench.drain(0)
    for ticket in tickets:
        assert "a" not in bench.stopping
        bench.done(ticket)
    assert bench.stopping.keys() == {"a"}
    assert UnloadReason.MOVED in [d.facts.get("reason") for d in bench.story]


def test_a_pinned_model_without_another_place_stays_on_a_drained_card() -> None:
    bench = Bench.of([model("a", 20, pinned=True), model("b", 20, pinned=True)], TWO)
    bench.touch("a")
    bench.touch("b")
    bench.drain(0)
    bench.wait(100)
    assert not bench.stopping
    assert "pinned" in bench.told(DecisionKind.MOVE, "a")[0]
    assert len(bench.told(DecisionKind.MOVE, "a")) == 1, "it is told once"


def test_a_drained_card_tries_again_after_a_failure_and_then_waits_an_hour(bench: Bench) -> None:
    tickets = bench.load("a")
    bench.drain(0)
    bench.die("a")
    bench.wait(6)
    assert "a" in bench.loading
    bench.die("a")
    bench.wait(3000)
    assert "a" not in bench.loading
    bench.wait(700)
    assert "a" in bench.loading
    bench.ready("a")
    bench.done(tickets[0])
    bench.gone("a")
    assert bench.where("a") == ["GPU-1"]


def test_a_move_to_a_card_that_is_drained_then_ends(bench: Bench) -> None:
    bench.move("a", 1)
    bench.drain(1)
    bench.gone("a")
    assert bench.where("a") == ["GPU-0"]
    assert outcomes(bench) == ["cancelled"]


def test_a_drain_is_foretold_with_the_room_that_each_takes() -> None:
    names = ["a", "b", "c"]
    bench = Bench.of([model(name, 7, pinned=name == "a") for name in names], TWO)
    for name in names:
        bench.touch(name)
    bench.touch("a")
    on_0 = [name for name in names if bench.where(name) == ["GPU-0"]]
    found = {each.model: each.method for each in plan_drain(bench.state, devices(0))}
    assert found.keys() == {*on_0}
    assert not bench.state.ledger.drained
    bench.drain(0)
    assert {*bench.loading} <= {name for name, method in found.items() if method is MoveMethod.LIVE}


def test_a_card_with_room_for_one_takes_one_and_the_other_is_unloaded() -> None:
    specs = [model(name, 10) for name in ("a", "b", "c")]
    bench = Bench.of(specs, TWO)
    for name in ("a", "b", "c"):
        bench.touch(name)
    crowded = bench.where("c")
    index = int(crowded[0][-1])
    there = [name for name in ("a", "b", "c") if bench.where(name) == crowded]
    assert len(there) == 2
    methods = sorted(each.method for each in plan_drain(bench.state, devices(index)))
    assert methods == [MoveMethod.LIVE, MoveMethod.UNLOAD]
    bench.drain(index)
    (moving,) = bench.loading
    bench.ready(moving)
    while bench.stopping:
        bench.gone(min(bench.stopping))
    assert bench.state.ledger.claimed_bytes(DeviceId(crowded[0])) == 0
    assert bench.where(moving) == [f"GPU-{1 - index}"]
