"""Nodes fall silent, are lost and come back: who is served, what is loaded elsewhere, what is taken over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import Copies, ResidencyState
from cotenant.planning.compute_modes import Admission
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events
from cotenant.scheduling.invariants import InvariantViolation, check
from cotenant.scheduling.model_spec import ModelSpec
from tests.scheduling.harness import GB, Bench, fit_whole, model
from tests.scheduling.test_nodes import card_of, in_ram, ram_of, read


def on_two_nodes(*models: ModelSpec, cards: int = 1, **settings: object) -> Bench:
    bench = Bench.of(models, [], **settings)
    for node in "ab":
        read(bench, *(card_of(node, index) for index in range(cards)), node=node)
    return bench


def silent(bench: Bench, node: str = "a") -> None:
    bench.send(events.NodeSilent(bench.now, node, 3.0))


def lost(bench: Bench, node: str = "a", *, for_good: bool = False) -> None:
    bench.send(events.NodeLost(bench.now, node, "it has not answered for 10 s", for_good))


def back(bench: Bench, node: str = "a") -> None:
    bench.send(events.NodeBack(bench.now, node))


def state_of(bench: Bench, name: str) -> list[ResidencyState]:
    residencies = bench.state.models[name].residencies
    return [bench.state.residencies[each].state for each in sorted(residencies)]


def test_a_model_on_a_silent_node_gets_no_new_request_and_those_under_way_are_left_alone() -> None:
    bench = on_two_nodes(model("m", 20, slots=2))
    (first,) = bench.load("m")
    silent(bench)
    assert state_of(bench, "m") == [ResidencyState.SUSPENDED]
    assert bench.scheduler.try_grant("m", bench.now) is None
    assert first in bench.granted
    assert not bench.stopping
    (budget,) = bench.state.ledger.budgets(among=[DeviceId("GPU-a0")])
    assert budget.left_out == "node a has not answered for 3.0 s"
    bench.done(first)
    assert state_of(bench, "m") == [ResidencyState.SUSPENDED]
    back(bench)
    assert state_of(bench, "m") == [ResidencyState.READY]
    assert bench.scheduler.try_grant("m", bench.now) is not None
    assert bench.told(DecisionKind.NODE)[0] == "node a has not answered for 3.0 s: nothing new goes there"


def test_it_is_loaded_elsewhere_only_once_somebody_waits() -> None:
    bench = on_two_nodes(model("m", 20), model("pinned", 20, pinned=True))
    bench.touch("m")
    silent(bench)
    assert not bench.loading
    ticket = bench.ask("m")
    assert bench.state.residencies[bench.loading["m"]].devices == ("GPU-b0",)
    bench.ready("m")
    assert ticket in bench.granted
    assert state_of(bench, "m") == [ResidencyState.SUSPENDED, ResidencyState.READY]


@pytest.mark.parametrize(("pinned", "loads"), [(True, ["m"]), (False, [])])
def test_when_an_engine_ends_on_a_silent_node_a_model_that_is_to_stay_is_loaded_elsewhere(
    pinned: bool, loads: list[str]
) -> None:
    bench = on_two_nodes(model("m", 20, pinned=pinned))
    bench.touch("m")
    (held,) = bench.state.residencies
    bench.send(events.NodeSilent(bench.now, "a", 0.0, "the agent of a has ended"))
    assert bench.told(DecisionKind.NODE)[0] == "the agent of a has ended: nothing new goes there"
    assert not bench.loading
    bench.send(events.EngineExited(bench.now, held, "the agent of a has ended"))
    assert [*bench.loading] == loads
    if pinned:
        assert bench.state.residencies[bench.loading["m"]].devices == ("GPU-b0",)


def test_an_engine_that_an_operator_unloads_on_a_silent_node_is_not_loaded_again() -> None:
    bench = on_two_nodes(model("m", 20, pinned=True))
    bench.touch("m")
    (held,) = bench.state.residencies
    silent(bench)
    bench.send(events.UnloadAsked(bench.now, "m"))
    bench.send(events.EngineExited(bench.now, held, "stopped"))
    assert not bench.loading


def test_a_copy_that_comes_back_ends_if_its_model_is_served_elsewhere_once_its_requests_have() -> None:
    bench = on_two_nodes(model("m", 20))
    (old,) = bench.load("m")
    silent(bench)
    (new,) = bench.load("m")
    assert new in bench.granted
    back(bench)
    assert state_of(bench, "m") == [ResidencyState.DRAINING, ResidencyState.READY]
    bench.done(old)
    assert [*bench.stopping] == ["m"]
    bench.gone("m")
    assert state_of(bench, "m") == [ResidencyState.READY]
    assert bench.where("m") == ["GPU-b0"]


def test_a_copy_that_comes_back_serves_at_once_if_the_other_one_is_still_loading() -> None:
    bench = on_two_nodes(model("m", 20))
    bench.touch("m")
    silent(bench)
    ticket = bench.ask("m")
    assert "m" in bench.loading
    back(bench)
    assert ticket in bench.granted
    assert bench.where("m") == ["GPU-a0"]
    assert "served from a GPU 0 card" in bench.told(DecisionKind.UNLOAD, "m")[-1]
    bench.gone("m")
    assert state_of(bench, "m") == [ResidencyState.READY]


def test_requests_of_a_model_that_fits_nowhere_else_wait_while_its_node_is_only_silent() -> None:
    bench = Bench.of([model("m", 30)], [])
    read(bench, card_of("a", 0, 40), node="a")
    read(bench, card_of("b", 0, 24), node="b")
    bench.touch("m")
    silent(bench)
    ticket = bench.ask("m")
    assert ticket not in bench.refused
    assert "node a has not answered" in bench.told(DecisionKind.WAITING, "m")[-1]
    back(bench)
    assert ticket in bench.granted
    bench.done(ticket)
    silent(bench)
    ticket = bench.ask("m")
    lost(bench)
    assert "a GPU 0 card is lost" in bench.refused[ticket].text
    assert bench.refused[ticket].retry_after_s is not None


def test_a_lost_node_takes_its_devices_residencies_and_leases_with_it_and_tickets_stay() -> None:
    bench = on_two_nodes(model("m", 20, slots=1), model("other", 20))
    (served,) = bench.load("m")
    (elsewhere,) = bench.load("other")
    waiting = bench.ask("m")
    lost(bench)
    assert [*bench.state.ledger.readings] == ["GPU-b0"]
    assert bench.state.residency_of(bench.state.models["m"]) is None
    assert len(bench.forgotten) == 1
    assert not bench.stopping, "nobody can be asked to stop there"
    assert waiting in bench.state.tickets
    assert served in bench.granted
    bench.done(served)
    bench.done(elsewhere)
    bench.wait(1)
    bench.gone("other")
    bench.ready("m")
    assert waiting in bench.granted
    assert bench.where("m") == ["GPU-b0"]
    bench.send(events.EngineExited(bench.now, bench.forgotten[0], "it came too late"))
    assert state_of(bench, "m") == [ResidencyState.READY]


def test_one_that_is_to_stay_loaded_is_loaded_again_when_its_node_is_lost() -> None:
    bench = on_two_nodes(model("pinned", 20, pinned=True), model("idle", 2))
    bench.touch("pinned")
    bench.touch("idle")
    lost(bench)
    assert [*bench.loading] == ["pinned"]


def test_a_forgotten_node_is_missed_by_nobody() -> None:
    bench = on_two_nodes(model("m", 30))
    read(bench, card_of("a", 0, 40), node="a")
    lost(bench)
    assert "a GPU 0 card is lost" in bench.refused[bench.ask("m")].text
    lost(bench, for_good=True)
    assert "lost" not in bench.refused[bench.ask("m")].text


def found(bench: Bench, name: str, device: str, gb: float, *, ready: bool = True, engine: str = "e1") -> None:
    (budget,) = bench.state.ledger.budgets(among=[DeviceId(device)])
    placed = fit_whole(round(gb * GB))([replace(budget, budget_bytes=1 << 60, left_out=None)])
    assert isinstance(placed, Placement)
    bench.send(events.EngineFound(bench.now, engine, name, placed, ready))


def seen(bench: Bench, node: str, held_gb: float, total_gb: float = 24, *, processes: bool = True) -> None:
    """A Reading of a real card that shows an engine which nobody here knows."""
    total, used = round(total_gb * GB), round(held_gb * GB)
    facts = {"foreign_bytes": used, "engine_bytes": {}} if processes else {}
    reading = DeviceReading(card_of(node, 0, total_gb), bench.now, total, total - used, **facts)  # type: ignore[arg-type]
    bench.send(events.DevicesRead(bench.now, (reading,), node))


@pytest.mark.parametrize("processes", [True, False])
def test_an_engine_that_ran_on_is_taken_over_and_serves_without_a_load(processes: bool) -> None:
    bench = on_two_nodes(model("m", 20))
    bench.touch("m")
    lost(bench)
    bench.now += 5
    back(bench)
    seen(bench, "a", 20, processes=processes)
    assert not bench.state.overcommitted
    found(bench, "m", "GPU-a0", 20)
    assert bench.adopted.keys() == {"e1"}
    assert bench.state.models["m"].loads == 1
    assert bench.ask("m") in bench.granted
    assert bench.state.ledger.claimed_bytes(DeviceId("GPU-a0")) == 20 * GB
    assert not bench.state.overcommitted
    assert "taken over as it runs on a GPU 0 card" in bench.told(DecisionKind.LOAD, "m")[-1]


def test_those_who_wait_are_served_by_an_engine_that_is_taken_over_in_place_of_the_load_under_way() -> None:
    bench = on_two_nodes(model("m", 20))
    bench.touch("m")
    lost(bench)
    ticket = bench.ask("m")
    assert "m" in bench.loading
    back(bench)
    seen(bench, "a", 20)
    found(bench, "m", "GPU-a0", 20)
    assert ticket in bench.granted
    bench.gone("m")
    assert state_of(bench, "m") == [ResidencyState.READY]


def test_a_daemon_that_begins_takes_over_what_is_loading_too() -> None:
    bench = on_two_nodes(model("m", 20))
    found(bench, "m", "GPU-a0", 20, ready=False)
    ticket = bench.ask("m")
    assert ticket not in bench.granted
    bench.now += 2
    bench.ready("m")
    assert ticket in bench.granted
    assert bench.state.models["m"].load_s == 2.0, "what it was of its load is no measure of one"


@pytest.mark.parametrize(
    ("why", "prepare", "name", "gb"),
    [
        ("not served", lambda bench: None, "unknown", 20),
        ("loaded elsewhere by now", lambda bench: bench.touch("m"), "m", 20),
        ("no room for what it may take", lambda bench: seen(bench, "b", 10), "m", 30),
        ("shutting down", lambda bench: bench.send(events.StopAsked(bench.now)), "m", 20),
        ("as many models are loaded", lambda bench: bench.touch("n"), "m", 20),
        ("admits no further engine", lambda bench: full(bench), "m", 4),
    ],
)
def test_what_cannot_be_taken_over_is_ended_with_the_reason(why, prepare, name, gb) -> None:  # type: ignore[no-untyped-def]
    bench = on_two_nodes(model("m", 20), model("n", 2), max_loaded=1)
    prepare(bench)
    found(bench, name, "GPU-b0", gb)
    assert why in bench.discarded["e1"]
    assert not bench.adopted


def full(bench: Bench) -> None:
    device = card_of("b", 0)
    reading = DeviceReading(
        device, bench.now, 24 * GB, 24 * GB, live=False, admission=Admission(0, "its mode")
    )
    bench.send(events.DevicesRead(bench.now, (reading,), "b"))


def test_a_model_that_moves_off_a_node_that_falls_silent_is_served_by_its_successor_alone() -> None:
    bench = on_two_nodes(model("m", 10))
    bench.touch("m")
    bench.send(events.MoveAsked(bench.now, "m", frozenset({DeviceId("GPU-b0")})))
    silent(bench)
    ticket = bench.ask("m")
    bench.ready("m")
    assert ticket in bench.granted
    assert bench.where("m") == ["GPU-b0"]
    back(bench)
    assert [*bench.stopping] == ["m"]


def test_a_move_to_a_node_that_falls_silent_or_is_lost_is_over_and_nobody_has_noticed() -> None:
    for ends in (silent, lost):
        bench = on_two_nodes(model("m", 10))
        bench.touch("m")
        bench.send(events.MoveAsked(bench.now, "m", frozenset({DeviceId("GPU-b0")})))
        ends(bench, "b")
        assert bench.state.models["m"].successor is None
        assert bench.ask("m") in bench.granted
        assert bench.where("m") == ["GPU-a0"]


def test_room_is_made_on_no_node_that_is_silent() -> None:
    bench = on_two_nodes(model("x", 20), model("y", 20), model("z", 20))
    (ticket,) = bench.load("x")
    bench.touch("y")
    bench.ask("z")
    assert [*bench.stopping] == ["y"]
    silent(bench, "b")
    assert not bench.state.reservations
    bench.done(ticket)
    bench.wait(1)
    assert "x" in bench.stopping
    bench.gone("x")
    assert bench.state.residencies[bench.loading["z"]].devices == ("GPU-a0",)
    lost(bench, "b")
    bench.ready("z")


def test_a_load_on_a_silent_node_does_not_hold_up_those_who_wait() -> None:
    bench = on_two_nodes(model("m", 20))
    ticket = bench.ask("m")
    first = bench.loading.pop("m")
    silent(bench)
    second = bench.loading["m"]
    assert bench.state.residencies[second].devices == ("GPU-b0",)
    bench.send(events.EngineReady(bench.now, first))
    assert state_of(bench, "m") == [ResidencyState.SUSPENDED, ResidencyState.LOADING]
    back(bench)
    assert ticket in bench.granted
    assert bench.where("m") == ["GPU-a0"]


def test_an_engine_that_dies_on_a_silent_node_is_no_failure_of_its_model() -> None:
    bench = on_two_nodes(model("m", 20))
    bench.touch("m")
    old = bench.state.models["m"].residency
    silent(bench)
    bench.send(events.EngineExited(bench.now, old, "killed"))
    assert bench.state.models["m"].failures == 0
    back(bench)
    seen(bench, "a", 0)
    assert state_of(bench, "m") == []


def test_a_model_that_is_changed_or_removed_meanwhile_does_not_serve_when_it_is_back() -> None:
    kept, changed, removed = model("kept", 5), model("changed", 5), model("removed", 5)
    bench = on_two_nodes(kept, changed, removed)
    for name in ("kept", "changed", "removed"):
        bench.touch(name)
    silent(bench)
    bench.send(events.ModelsChanged(bench.now, (kept, changed), frozenset({"changed"})))
    back(bench)
    assert state_of(bench, "kept") == [ResidencyState.READY]
    assert {"changed", "removed"} <= bench.stopping.keys()
    bench.gone("removed")
    assert "removed" not in bench.state.models


def test_host_ram_of_a_silent_node_is_not_used() -> None:
    bench = Bench.of([in_ram("x", 16), in_ram("y", 16)], [])
    for node in "ab":
        read(bench, card_of(node, 0), ram_of(node, 24), node=node)
    (ticket,) = bench.load("x")
    silent(bench, "b")
    bench.ask("y")
    assert "y" not in bench.loading
    bench.done(ticket)
    bench.wait(1)
    bench.gone("x")
    assert bench.state.residencies[bench.loading["y"]].node == "a"


def test_what_breaks_a_law_of_nodes_is_found() -> None:
    bench = on_two_nodes(model("m", 20))
    bench.touch("m")
    bench.state.ledger.silent["a"] = "for a test"
    with pytest.raises(InvariantViolation, match="law 2: m #1 serves, and its node does not answer"):
        check(bench.state)


def test_a_model_that_is_pinned_while_a_silent_node_still_has_to_unload_it_is_not_evicted() -> None:
    bench = on_two_nodes(model("m", 20), model("n", 20), model("o", 20))
    for name in ("m", "n"):
        bench.touch(name)
    bench.ask("o")
    (evicted,) = bench.stopping
    silent(bench, "a" if bench.state.residencies[bench.stopping[evicted]].node == "a" else "b")
    bench.send(events.PinAsked(bench.now, evicted, pinned=True))
    assert bench.state.models[evicted].pinned


def test_a_copy_that_is_being_evicted_when_its_model_is_pinned_is_loaded_again() -> None:
    twice = model("m", 10, copies=Copies(2, 2))
    bench = on_two_nodes(twice, model("o", 20))
    bench.touch("m")
    for name in [*bench.loading]:
        bench.ready(name)
    bench.ask("o")
    assert bench.stopping
    bench.send(events.PinAsked(bench.now, "m", pinned=True))
    for name in [*bench.stopping]:
        bench.gone(name)
    assert bench.state.models["m"].pinned


def test_a_model_that_is_taken_over_at_the_start_has_its_whole_keep_alive() -> None:
    bench = on_two_nodes(model("m", 4, keep_alive_s=60.0))
    bench.now = 50_000.0
    found(bench, "m", "GPU-a0", 4)
    bench.wait(50.0)
    assert not bench.told(DecisionKind.UNLOAD, "m")
    bench.wait(20.0)
    assert "idle 1 m 0 s" in bench.told(DecisionKind.UNLOAD, "m")[-1]


def test_one_that_is_to_stay_is_loaded_again_if_an_engine_dies_that_was_found_while_it_loaded() -> None:
    bench = on_two_nodes(model("pinned", 20, pinned=True))
    found(bench, "pinned", "GPU-a0", 20, ready=False)
    bench.die("pinned")
    assert "pinned" in bench.loading
