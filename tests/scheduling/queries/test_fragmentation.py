"""The scheduler's memory as fragmentation is measured and as moves would change it."""

from dataclasses import replace

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.planning.defragment import defragment
from cotenant.planning.fragmentation import measure
from cotenant.planning.ledger import DeviceReading
from cotenant.planning.needs import Needs
from cotenant.scheduling import events
from cotenant.scheduling.queries.fragmentation import free_memory, packing_problem, waiting_longest
from tests.scheduling.harness import GB, Bench, card, fit_over, model


def bench(*, gemma: dict | None = None, llama: dict | None = None) -> Bench:
    """Two cards of 24 GB: gemma (8) on one, qwen (12) on the other, and llama (18) that fits on neither."""
    models = (
        model("gemma", 8, **(gemma or {})),
        model("qwen", 12),
        model("llama", 18, **(llama or {})),
        model("small", 3),
    )
    found = Bench.of(models, [card(0), card(1)])
    for name in ("gemma", "qwen"):
        found.touch(name)
    assert {r.model: r.devices for r in found.state.residencies.values()} == {
        "gemma": ("GPU-0",),
        "qwen": ("GPU-1",),
    }
    return found


def propose(found: Bench, name: str = "llama"):
    return defragment(packing_problem(found.state, found.state.models[name]), Needs())


def moved(found: Bench) -> list[tuple[str, str]]:
    return [(move.model, move.to) for move in propose(found).moves]


def test_what_is_free_is_measured_for_the_models_that_are_not_loaded():
    found = bench()
    told = measure(free_memory(found.state, found.now), Needs())
    assert told.free_bytes == 28 * GB
    assert told.ratio == pytest.approx(0.5), "llama, one of two, can use none of it"
    assert told.stranded_bytes == 0, "small can use all of it"
    assert told.largest_in_one_piece is not None
    assert told.largest_in_one_piece.name == "llama"


def test_what_is_drained_is_not_free_to_anyone():
    found = bench()
    found.state.ledger.drain(frozenset({card(1).id}))
    told = measure(free_memory(found.state, found.now), Needs())
    assert told.by_device["GPU-1"].stranded_bytes == 0
    assert told.free_bytes == 16 * GB


def test_a_loaded_model_makes_way_for_one_that_would_fit_in_one_piece():
    found = bench()
    assert moved(found) == [("gemma", "GPU-1")]
    assert propose(found).text == "llama would fit if gemma moved to GPU 1"


def test_the_proposal_is_what_the_scheduler_then_does():
    found = bench()
    (move,) = propose(found).moves
    found.send(events.MoveAsked(found.now, move.model, frozenset({card(1).id})))
    found.ready("gemma")
    found.gone("gemma")
    assert not propose(found).moves
    assert propose(found).fits
    found.ask("llama")
    assert found.state.residency_of(found.state.models["llama"]).devices == ("GPU-0",)
    assert found.state.residency_of(found.state.models["gemma"]).devices == ("GPU-1",)


@pytest.mark.parametrize("why", ["pinned", "spread on purpose", "run by others", "drained", "full"])
def test_what_must_not_move_is_not_proposed(why):
    facts = {"spread on purpose": {"together": True}}.get(why, {})
    found = bench(gemma=facts)
    found.send(events.PinAsked(found.now, "qwen", True))
    if why == "pinned":
        found.send(events.PinAsked(found.now, "gemma", True))
    elif why == "run by others":
        here = found.state.residency_of(found.state.models["gemma"])
        others_run = replace(here.placement.recipe, engine=EngineKind.OLLAMA)
        here.placement = replace(here.placement, recipe=others_run)
    elif why == "drained":
        found.state.ledger.drain(frozenset({card(1).id}))
    elif why == "full":
        found.read(card(0), card(1), admits={1: 1})
    else:
        assert why == "spread on purpose"
    assert not propose(found).moves


def test_a_model_in_use_is_moved_only_live():
    found = bench()
    found.load("gemma")
    assert moved(found) == [("gemma", "GPU-1")]
    problem = packing_problem(found.state, found.state.models["llama"])
    assert {each.name: each.idle for each in problem.residents} == {"gemma": False, "qwen": True}


def test_a_model_that_loads_or_moves_already_and_its_device_are_left_alone():
    found = bench()
    found.ask("small")
    assert "small" in found.loading
    problem = packing_problem(found.state, found.state.models["llama"])
    assert {each.name for each in problem.residents} == {"gemma", "qwen"}
    assert [room.budget.left_out for room in problem.memory.rooms].count(None) == 1
    found.ready("small")
    found.send(events.MoveAsked(found.now, "gemma", frozenset({card(1).id})))
    problem = packing_problem(found.state, found.state.models["llama"])
    assert "gemma" not in {each.name for each in problem.residents}


def test_a_split_model_is_proposed_too():
    found = bench(llama={"fit": fit_over([17 * GB, 11 * GB])})
    assert not propose(found).moves, "gemma would take the room of the second part"
    found.read(card(0), card(1), card(2))
    assert moved(found) == [("gemma", "GPU-2")]


def test_who_waits_longest_for_room_is_asked_about():
    found = bench()
    assert waiting_longest(found.state, found.now) is None
    for name in ("gemma", "qwen"):
        found.load(name)
    found.ask("llama")
    waiting = waiting_longest(found.state, found.now)
    assert waiting is not None
    assert waiting.spec.name == "llama"


def test_of_several_machines_the_one_with_the_most_free_memory_is_searched():
    cards = [replace(card(number), node=f"n{number // 2}") for number in range(4)]
    models = [model("a", 8), model("b", 12), model("c", 20), model("d", 20), model("llama", 18)]
    found = Bench.of(models, [])
    for node in ("n0", "n1"):
        readings = [
            DeviceReading(each, 0.0, each.total_bytes, each.total_bytes, live=False)
            for each in cards
            if each.node == node
        ]
        found.send(events.DevicesRead(found.now, tuple(readings), node))
    for name in "abcd":
        found.touch(name)
    problem = packing_problem(found.state, found.state.models["llama"])
    assert [room.budget.device.node for room in problem.memory.rooms] == ["n0", "n0"]
    assert {each.name for each in problem.residents} == {"a", "b"}
    assert moved(found) == [("a", "GPU-1")]
