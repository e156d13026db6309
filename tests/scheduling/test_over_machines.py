"""A model over two machines: only where none could hold it, and lost with either of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.nodes import FileState, LoadCost
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import ResidencyState
from cotenant.planning.device_needs import Fit
from cotenant.scheduling import events
from cotenant.scheduling.invariants import InvariantViolation, check
from cotenant.scheduling.model_spec import ModelSpec
from tests.scheduling.harness import GB, Bench, card, fit_over, model
from tests.scheduling.test_nodes import card_of, read
from tests.scheduling.test_silent_nodes import back, lost, on_two_nodes, silent, state_of


def over(*sizes: float) -> Fit:
    """A model of pieces, one a card, of any machine."""
    place = fit_over([round(size * GB) for size in sizes])

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        found = place(budgets)
        return replace(found, link_bytes=4096) if isinstance(found, Placement) else found

    return fit


def large(name: str = "large", *sizes: float, **facts: object) -> ModelSpec:
    """A model of 20 GB on each of two cards, which may be of two machines."""
    fit = over(*(sizes or (20, 20)))
    return replace(ModelSpec(name, fit, across=fit, load_s=2.0), **facts)  # type: ignore[arg-type]


def test_a_model_that_fits_no_machine_is_over_two_if_it_may_be_and_says_what_that_costs() -> None:
    bench = on_two_nodes(large(), replace(large("not"), across=None))
    bench.load("large")
    assert bench.where("large") == ["GPU-a0", "GPU-b0"]
    (text,) = bench.told(DecisionKind.LOAD, "large")
    assert text.startswith("loading on a GPU 0 card, b GPU 0 card: 37.3 GiB")
    assert "it fits no machine alone: over 2 of them it is slow, and 4 KiB cross the network" in text
    assert "does not fit" in bench.refused[bench.ask("not")].text


def test_it_waits_for_its_own_machine_rather_than_be_split_over_others() -> None:
    bench = Bench.of([large(), model("other", 20)], [])
    read(bench, card_of("a", 0), card_of("a", 1), node="a")
    read(bench, card_of("b", 0), node="b")
    (busy,) = bench.load("other")
    assert bench.where("other") == ["GPU-a0"]
    ticket = bench.ask("large")
    assert not bench.loading, "a GPU 1 and b GPU 0 are free, and a holds it alone once it is empty"
    bench.done(busy)
    bench.wait(200)
    bench.gone("other")
    bench.ready("large")
    assert ticket in bench.granted
    assert bench.where("large") == ["GPU-a0", "GPU-a1"]


def test_room_for_it_is_made_on_all_its_machines() -> None:
    bench = on_two_nodes(large(), model("x", 20), model("y", 20))
    bench.touch("x")
    bench.touch("y")
    ticket = bench.ask("large")
    bench.wait(200)
    assert sorted(bench.stopping) == ["x", "y"]
    bench.gone("x")
    assert not bench.loading
    bench.gone("y")
    bench.ready("large")
    assert ticket in bench.granted


def test_once_a_machine_that_could_hold_it_is_lost_it_may_be_over_the_others() -> None:
    bench = Bench.of([large()], [])
    for node, cards in (("a", 1), ("b", 1), ("c", 2)):
        read(bench, *(card_of(node, index) for index in range(cards)), node=node)
    bench.touch("large")
    assert bench.where("large") == ["GPU-c0", "GPU-c1"]
    silent(bench, "c")
    bench.touch("large")
    assert bench.where("large") == ["GPU-a0", "GPU-b0"]


@pytest.mark.parametrize("node", ["a", "b"])
def test_while_either_machine_is_silent_it_serves_nobody_and_goes_on_when_that_answers(node: str) -> None:
    bench = on_two_nodes(large(slots=2))
    (first,) = bench.load("large")
    silent(bench, node)
    assert state_of(bench, "large") == [ResidencyState.SUSPENDED]
    assert bench.scheduler.try_grant("large", bench.now) is None
    assert first in bench.granted
    back(bench, node)
    assert state_of(bench, "large") == [ResidencyState.READY]
    assert bench.scheduler.try_grant("large", bench.now) is not None


def test_if_both_are_silent_it_waits_for_both() -> None:
    bench = on_two_nodes(large())
    bench.touch("large")
    silent(bench, "a")
    silent(bench, "b")
    back(bench, "a")
    assert state_of(bench, "large") == [ResidencyState.SUSPENDED]
    back(bench, "b")
    assert state_of(bench, "large") == [ResidencyState.READY]


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("loading", [False, True])
def test_if_one_is_lost_the_rest_is_stopped_and_its_memory_is_given_to_nobody_until_it_is_gone(
    node: str, loading: bool
) -> None:
    bench, other = on_two_nodes(large(slots=2), model("small", 10)), "b" if node == "a" else "a"
    if loading:
        bench.ask("large")
    else:
        bench.load("large")
    silent(bench, node)
    lost(bench, node)
    assert state_of(bench, "large") == [ResidencyState.UNLOADING]
    assert not bench.forgotten
    assert not bench.state.leases
    ticket = bench.ask("small")
    assert ticket not in bench.granted
    assert "small" not in bench.loading
    bench.gone("large")
    assert bench.state.residencies[bench.loading["small"]].devices == (f"GPU-{other}0",)
    bench.ready("small")
    assert ticket in bench.granted


def test_if_both_are_lost_it_is_forgotten() -> None:
    bench = on_two_nodes(large())
    bench.touch("large")
    silent(bench, "a")
    silent(bench, "b")
    lost(bench, "a")
    assert state_of(bench, "large") == [ResidencyState.UNLOADING]
    lost(bench, "b")
    assert len(bench.forgotten) == 1
    assert not bench.state.residencies


def test_it_is_not_taken_over_by_another_daemon() -> None:
    bench = on_two_nodes(large())
    placement = large().fit(bench.state.ledger.budgets())
    assert isinstance(placement, Placement)
    bench.send(events.EngineFound(0.0, "e1", "large", placement, True))
    assert bench.discarded == {"e1": "its parts on other machines are not taken over"}


def test_it_is_not_moved() -> None:
    bench = on_two_nodes(large())
    bench.touch("large")
    bench.move("large", 0)
    assert "it is over several machines" in bench.told(DecisionKind.MOVE, "large")[0]


def test_a_placement_over_machines_that_is_not_meant_breaks_the_law() -> None:
    bench = on_two_nodes(large())
    bench.touch("large")
    residency = next(iter(bench.state.residencies.values()))
    residency.placement = replace(residency.placement, link_bytes=None)
    with pytest.raises(InvariantViolation, match=r"law 2: large #\d+ is on 2 machines"):
        check(bench.state)


def test_without_other_machines_it_is_as_any_model() -> None:
    bench = Bench.of([large()], [card(0)])
    assert "does not fit" in bench.refused[bench.ask("large")].text


def test_a_machine_without_its_file_lends_its_gpus_and_does_not_count_as_one_that_could_hold_it() -> None:
    bench = Bench.of([large()], [])
    read(bench, card_of("a", 0), card_of("a", 1), node="a")
    read(bench, card_of("b", 0), node="b")
    costs = {"a": LoadCost(None, FileState.ABSENT, "no file"), "b": LoadCost(1.0, FileState.WARM)}
    bench.send(events.LoadCostsRead(0.0, {"large": costs}))
    assert bench.state.models["large"].over_machines
    fit, budgets = bench.state.models["large"].fit, bench.state.ledger.budgets()
    placement = fit(budgets)
    assert isinstance(placement, Placement)
    lends = {share.device.node: share.budget.lends_only for share in placement.used_shares}
    assert lends["a"] == "no file"
    assert all(budget.left_out is None for budget in budgets)
    bench.send(events.LoadCostsRead(0.0, {"large": {**costs, "a": LoadCost(2.0, FileState.LOCAL)}}))
    assert not bench.state.models["large"].over_machines, "a has it, and holds it alone"
