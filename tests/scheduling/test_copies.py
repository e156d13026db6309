"""Copies of a model: which one serves, when one is added, and which one goes first."""

from collections.abc import Sequence

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.residencies import Copies, ResidencyState
from cotenant.scheduling import events
from cotenant.scheduling.model_spec import ModelSpec
from tests.scheduling.harness import Bench, card, model

TWO, UP_TO_TWO = Copies(2, 2), Copies(1, 2)


def copied(name: str = "a", gb: float = 10, copies: Copies = UP_TO_TWO, **facts: object) -> ModelSpec:
    return model(name, gb, copies=copies, **facts)


def served(*others: ModelSpec, cards: int = 2, copies: Copies = TWO, **facts: object) -> Bench:
    """Two copies of `a` that are ready, on cards of their own, next to other models."""
    bench = Bench.of([copied(copies=copies, **facts), *others], [card(index) for index in range(cards)])
    bench.done(bench.load("a")[0])
    if copies.least == 1:
        crowd(bench)
    bench.ready("a#2")
    while bench.granted:
        bench.done(next(iter(bench.granted)))
    return bench


def crowd(bench: Bench) -> None:
    """Have more ask for `a` than it has slots for, until that is worth a copy."""
    for _ in range(4):
        bench.ask("a")
    bench.wait(1)


def use(bench: Bench, count: int, conversations: Sequence[tuple[int, ...]] = ()) -> list[str]:
    """Grant leases on `a`, and return the devices that they are on."""
    found = []
    for number in range(count):
        conversation = conversations[number] if conversations else ()
        granted = bench.scheduler.try_grant("a", bench.now, None, conversation)
        assert granted is not None
        found.append(str(bench.state.residencies[granted[1]].devices[0]))
    return found


def test_as_many_copies_as_are_configured_are_loaded_each_on_a_card_of_its_own() -> None:
    bench = served()
    assert (bench.where("a"), bench.where("a#2")) == (["GPU-0"], ["GPU-1"])
    told = bench.told(DecisionKind.LOAD, "a")
    assert told[1].startswith("copy 2: loading on GPU 1")
    assert "2 copies are loaded with the model" in told[1]


def test_two_copies_never_share_a_card() -> None:
    bench = Bench.of([copied(copies=TWO)], [card(0)])
    bench.load("a")
    bench.wait(300)
    assert bench.where("a#2") == []
    assert "a#2" not in bench.loading
    assert "waits for room" in bench.told(DecisionKind.WAITING, "a")[-1]


def test_requests_go_to_the_least_busy_copy() -> None:
    bench = served(slots=2)
    assert use(bench, 4) == ["GPU-0", "GPU-1", "GPU-0", "GPU-1"]
    assert bench.scheduler.try_grant("a", bench.now) is None


def test_a_request_goes_to_the_copy_that_has_its_conversation() -> None:
    bench = served(slots=4)
    assert use(bench, 2, [(1,), (7,)]) == ["GPU-0", "GPU-1"]
    assert use(bench, 3, [(7, 8, 9), (1, 2), (7, 8, 9, 10)]) == ["GPU-1", "GPU-0", "GPU-1"]


def test_a_conversation_whose_copy_is_full_goes_on_elsewhere() -> None:
    bench = served(slots=1)
    assert use(bench, 2, [(1,), (1, 2)]) == ["GPU-0", "GPU-1"]


def test_what_waits_is_granted_on_whichever_copy_is_free_first() -> None:
    bench = served(slots=1)
    first, second, third = (bench.ask("a") for _ in range(3))
    bench.done(second)
    assert third in bench.granted
    assert bench.scheduler.wait_estimate("a", bench.now) is not None
    bench.done(first)
    assert bench.scheduler.wait_estimate("a", bench.now) is None


def test_a_copy_is_added_once_requests_have_waited_as_long_in_sum_as_its_load_takes() -> None:
    bench = Bench.of([copied(load_s=9)], [card(0), card(1)])
    bench.now = 10
    bench.ask("a")
    bench.wait(6)
    bench.ready("a")  # It takes 6 s.
    for _ in range(3):
        bench.ask("a")
    bench.wait(1.9)
    assert "a#2" not in bench.loading
    bench.wait(0.2)
    assert "a#2" in bench.loading
    assert "3 requests wait for a slot, 6.0 s in sum" in bench.told(DecisionKind.LOAD, "a")[-1]


def test_no_copy_is_added_beyond_what_waits_or_what_is_configured() -> None:
    bench = Bench.of([copied(copies=Copies(1, 4), slots=2)], [card(index) for index in range(4)])
    bench.load("a", requests=4)
    bench.wait(10)
    assert [*bench.loading] == ["a#2"], "two wait, and a copy that loads has two slots"
    bench.ask("a")
    bench.wait(10)
    assert sorted(bench.loading) == ["a#2", "a#3"]


def test_a_copy_is_not_loaded_any_more_once_nobody_waits() -> None:
    bench = served(model("b", 20), copies=UP_TO_TWO)
    bench.ask("b")  # It takes the card of the second copy.
    bench.gone("a#2")
    bench.ready("b")
    crowd(bench)
    assert bench.state.models["a#2"].wanted
    while bench.granted:
        bench.done(next(iter(bench.granted)))
    assert not bench.state.models["a#2"].wanted


@pytest.mark.parametrize("idle_s", [30, 90])
def test_a_copy_takes_only_room_of_models_that_are_not_in_demand(idle_s: float) -> None:
    bench = Bench.of([copied(), model("b", 20)], [card(0), card(1)])
    bench.load("a")
    bench.touch("b")
    assert bench.where("b") == ["GPU-1"]
    bench.wait(idle_s)
    crowd(bench)
    assert ("b" in bench.stopping) is (idle_s > 60)
    bench.wait(61 - idle_s if idle_s < 60 else 0)
    assert "b" in bench.stopping
    bench.gone("b")
    assert "a#2" in bench.loading


def test_a_model_that_waits_for_room_goes_before_another_copy() -> None:
    bench = Bench.of([copied(), model("b", 20), model("c", 20)], [card(0), card(1)])
    bench.load("a")
    bench.load("b")
    bench.ask("c")
    crowd(bench)
    for ticket in [t for t in bench.granted if t == 2]:
        bench.done(ticket)
    bench.gone("b")
    assert [*bench.loading] == ["c"]


def test_a_card_is_freed_from_the_second_copy_before_anybody_else_is_evicted() -> None:
    bench = served(model("idle", 20), model("new", 20), cards=3)
    bench.touch("idle")
    bench.wait(200)
    for ticket in (bench.ask("a"), bench.ask("a")):
        bench.done(ticket)  # Both copies were used just now, the other one long ago.
    bench.ask("new")
    assert [*bench.stopping] == ["a#2"]
    assert bench.where("idle") == ["GPU-2"]


def test_a_busy_copy_goes_first_too_once_its_requests_have_ended() -> None:
    bench = served(model("new", 20))
    first, second = bench.ask("a"), bench.ask("a")
    bench.wait(1)
    new = bench.ask("new")
    copy = bench.state.residencies[bench.state.models["a#2"].residency]
    assert copy.state is ResidencyState.DRAINING
    third = bench.ask("a")
    assert third not in bench.granted, "it admits nothing more"
    bench.done(second)
    assert bench.stopping["a#2"] == copy.id
    bench.done(first)
    assert third in bench.granted
    bench.gone("a#2")
    bench.ready("new")
    assert new in bench.granted


def test_of_a_copy_with_long_requests_and_an_idle_model_the_idle_one_goes() -> None:
    bench = served(model("idle", 20), model("new", 20, load_s=2.0), cards=3)
    bench.touch("idle")
    bench.state.models["a"].service_s = 500.0
    bench.wait(200)
    bench.ask("a"), bench.ask("a")
    bench.ask("new")
    assert [*bench.stopping] == ["idle"]


def test_if_the_first_copys_card_is_needed_the_second_one_serves_on_as_the_first() -> None:
    bench = served(model("new", 20))
    second = bench.state.models["a#2"].residency
    bench.state.models["new"].allowed = tuple(d for d in bench.state.ledger.readings if d == "GPU-0")
    bench.ask("new")
    assert second not in bench.stopping.values()
    assert bench.state.models["a"].residency == second
    assert use(bench, 1) == ["GPU-1"]


def test_the_copies_of_a_pinned_model_stay_and_those_beyond_do_not() -> None:
    bench = served(model("new", 20), copies=TWO)
    bench.send(events.PinAsked(bench.now, "a", True))
    bench.ask("new")
    assert not bench.stopping
    bench.send(events.PinAsked(bench.now, "a", False))
    bench.ask("new")
    assert [*bench.stopping] == ["a#2"]
    other = served(model("new", 20), copies=UP_TO_TWO)
    other.send(events.PinAsked(other.now, "a", True))
    other.ask("new")
    assert [*other.stopping] == ["a#2"]


def test_the_copies_of_a_pinned_model_are_made_room_for() -> None:
    bench = Bench.of([copied(copies=TWO, pinned=True), model("b", 20)], [card(0), card(1)])
    bench.touch("b")
    bench.load("a")
    assert "b" in bench.stopping


def test_each_further_copy_has_its_own_keep_alive() -> None:
    bench = served(copies=UP_TO_TWO, keep_alive_s=100.0)
    for _ in range(4):
        bench.wait(30)
        bench.touch("a")
    assert [*bench.stopping] == ["a#2"]
    assert bench.where("a") == ["GPU-0"]


def test_copies_that_come_with_the_model_go_with_it() -> None:
    bench = served(copies=TWO, keep_alive_s=100.0)
    for _ in range(4):
        bench.wait(30)
        bench.touch("a")
    assert not bench.stopping
    bench.wait(101)
    assert sorted(bench.stopping) == ["a", "a#2"]


def test_the_death_of_a_copy_leaves_its_model_served_and_it_is_loaded_again() -> None:
    bench = served()
    bench.die("a#2")
    assert use(bench, 1) == ["GPU-0"]
    assert "a#2" in bench.loading
    assert bench.told(DecisionKind.FAILED, "a")[-1].startswith("copy 2: killed by signal 9")


def test_the_death_of_the_first_copy_leaves_its_model_served() -> None:
    bench = served()
    second = bench.state.models["a#2"].residency
    bench.die("a")
    assert bench.state.models["a"].residency == second
    assert "a#2" in bench.loading
    ticket = bench.ask("a")
    assert ticket in bench.granted


def test_a_copy_that_cannot_be_loaded_refuses_nobody_and_is_tried_again_later() -> None:
    bench = Bench.of([copied(copies=TWO)], [card(0), card(1)])
    bench.load("a")
    waiting = bench.ask("a")
    bench.die("a#2", "it cannot be loaded")
    bench.die("a#2", "it cannot be loaded")
    assert "a#2" not in bench.loading
    assert not bench.refused
    assert waiting in bench.state.tickets
    bench.wait(6)
    assert "a#2" in bench.loading


def test_a_reload_by_difference_adds_and_removes_copies_and_leaves_the_others_alone() -> None:
    bench = Bench.of([copied(copies=Copies(1, 1))], [card(0), card(1), card(2)])
    bench.touch("a")
    first = bench.state.models["a"].residency
    bench.send(events.ModelsChanged(bench.now, (copied(copies=Copies(3, 3)),)))
    bench.ready("a#2")
    bench.ready("a#3")
    assert len(use(bench, 3)) == 3
    bench.send(events.ModelsChanged(bench.now, (copied(copies=TWO),)))
    drained = bench.state.residencies[bench.state.models["a#3"].residency]
    assert drained.state is ResidencyState.DRAINING
    assert bench.state.models["a"].residency == first
    (lease,) = drained.leases
    bench.take(bench.scheduler.release(lease, bench.now))
    bench.gone("a#3")
    assert "a#3" not in bench.state.models


def test_a_model_that_is_served_no_more_goes_with_all_of_its_copies() -> None:
    bench = served(model("b", 1))
    bench.send(events.ModelsChanged(bench.now, (model("b", 1),)))
    assert sorted(bench.stopping) == ["a", "a#2"]
    bench.gone("a")
    bench.gone("a#2")
    assert [*bench.state.models] == ["b"]
    assert not bench.state.copied


def test_an_unload_is_of_all_copies() -> None:
    bench = served()
    bench.send(events.UnloadAsked(bench.now, "a"))
    assert sorted(bench.stopping) == ["a", "a#2"]
    bench.gone("a")
    bench.gone("a#2")
    assert not bench.loading


def test_a_copy_moves_by_its_own_name() -> None:
    bench = served(cards=3)
    bench.move("a#2", 2)
    assert bench.where("a#2") == ["GPU-1"]
    bench.ready("a#2")
    assert bench.where("a#2") == ["GPU-2"]
    assert bench.told(DecisionKind.MOVE, "a")[-1].startswith("copy 2: serves from GPU 2")


def test_a_drained_card_is_left_by_its_copy() -> None:
    bench = served(cards=3)
    bench.drain(1)
    bench.ready("a#2")
    assert bench.where("a#2") == ["GPU-2"]


def test_a_model_with_several_copies_takes_one_place_of_those_that_may_be_loaded() -> None:
    bench = Bench.of([copied(copies=TWO), model("b", 1), model("c", 1)], [card(0), card(1)], max_loaded=2)
    bench.done(bench.load("a")[0])
    bench.ready("a#2")
    bench.touch("b")
    assert not bench.stopping
    bench.wait(1)
    bench.touch("a")
    bench.ask("c")
    assert [*bench.stopping] == ["b"]


def test_to_stay_within_the_limit_all_copies_of_a_model_go() -> None:
    bench = Bench.of([copied(copies=TWO), model("b", 1)], [card(0), card(1)], max_loaded=1)
    bench.done(bench.load("a")[0])
    bench.ready("a#2")
    bench.ask("b")
    assert sorted(bench.stopping) == ["a", "a#2"]
