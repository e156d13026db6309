"""Of GPUs that fit, a model goes where it loads soonest; where it cannot be loaded it never goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.nodes import FileState, LoadCost, costs_text, missing_text
from cotenant.scheduling import events
from tests.scheduling.harness import GB, Bench, fit_over, model
from tests.scheduling.test_nodes import card_of, of_two_nodes, read, with_gpus

LACKS = "no file /models/m.gguf"


def cost(seconds: float | None) -> LoadCost:
    if seconds is None:
        return LoadCost(None, FileState.ABSENT, LACKS)
    states = [FileState.WARM, FileState.LOCAL, FileState.ABSENT]
    return LoadCost(seconds, states[(seconds >= 10) + (seconds >= 100)])


def costs(bench: Bench, name: str = "m", **seconds: float | None) -> None:
    found = {node: cost(each) for node, each in seconds.items()}
    bench.send(events.LoadCostsRead(bench.now, {name: found}))


def test_of_cards_that_fit_equally_that_one_is_chosen_where_the_file_loads_soonest_and_why_says_so() -> None:
    bench = of_two_nodes(model("m", 20), model("other", 20))
    costs(bench, a=41.0, b=3.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-b0"]
    told = bench.told(DecisionKind.LOAD, "m")[0]
    assert told.startswith("loading on b GPU 0 card: 18.6 GiB, about 3.0 s;")
    assert told.endswith("; where its files are: b: warm, 3.0 s; a: local, 41.0 s")
    costs(bench, a=1.0, b=3.0)
    bench.send(events.UnloadAsked(bench.now, "m"))
    bench.gone("m")
    bench.touch("m")
    assert bench.where("m") == ["GPU-a0"]


def test_where_it_is_not_known_how_soon_a_model_loads_it_counts_as_usual() -> None:
    bench = of_two_nodes(model("m", 20, load_s=10.0))
    costs(bench, b=3.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-b0"]
    bench = of_two_nodes(model("m", 20, load_s=10.0))
    costs(bench, b=30.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-a0"]


def test_an_unused_card_goes_before_a_used_one_whatever_its_file_costs() -> None:
    bench = Bench.of([model("other", 5), model("m", 5)], [])
    read(bench, card_of("b", 0), node="b")
    bench.touch("other")
    read(bench, card_of("a", 0), node="a")
    costs(bench, a=41.0, b=3.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-a0"]


def test_a_used_card_goes_before_an_unused_one_whose_machine_has_to_fetch_the_file() -> None:
    bench = Bench.of([model("other", 5), model("m", 5), model("large", 22)], [])
    read(bench, card_of("b", 0), node="b")
    bench.touch("other")
    read(bench, card_of("a", 0), node="a")
    costs(bench, a=160.0, b=3.0)
    costs(bench, "large", a=160.0, b=3.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-b0"]
    bench.touch("large")
    assert bench.where("large") == ["GPU-a0"], "nobody is evicted for it"


def test_nobody_is_evicted_for_a_sooner_load() -> None:
    bench = of_two_nodes(model("m", 20), model("x", 20), model("y", 20), model("z", 20))
    costs(bench, "x", a=3.0, b=1.0)
    bench.touch("x")
    assert bench.where("x") == ["GPU-b0"]
    costs(bench, a=41.0, b=3.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-a0"], "x stays where m would load sooner"


def test_of_victims_that_cost_the_same_those_go_on_whose_machine_it_loads_soonest() -> None:
    bench = Bench.of([model("x", 20), model("y", 20), model("m", 20)], [])
    for node in "ab":
        read(bench, card_of(node, 0), node=node)
    tickets = [*bench.load("x"), *bench.load("y")]
    for ticket in tickets:
        bench.done(ticket)
    costs(bench, a=41.0, b=3.0)
    bench.wait(100)
    bench.ask("m")
    assert [*bench.stopping] == ["y"], "the one on b"


def test_a_model_whose_file_cannot_be_had_on_a_machine_is_not_placed_there() -> None:
    bench = of_two_nodes(model("m", 20))
    costs(bench, a=None, b=160.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-b0"]
    told = bench.told(DecisionKind.LOAD, "m")[0]
    assert told.endswith("; where its files are: b: absent, 2 m 40 s; a: absent")


def test_a_refusal_names_each_machine_that_lacks_the_file() -> None:
    bench = of_two_nodes(with_gpus())
    read(bench, card_of("c", 0, 0.5), node="c")
    costs(bench, a=None, b=None, c=3.0)
    text = bench.refused[bench.ask("m")].text
    assert text.endswith(f"; a, b: {LACKS}"), text
    costs(bench, a=None, b=1.0, c=None)
    bench.load("m")
    assert bench.where("m") == ["GPU-b0"], "it was copied there"


@pytest.mark.parametrize("gb", [30, 40])
def test_a_model_of_several_cards_goes_where_its_file_loads_soonest_too(gb: float) -> None:
    size = round(gb * GB)
    spec = replace(model("m", 0), fit=fit_over([size // 2, size // 2]), together=True)
    bench = Bench.of([spec], [])
    for node in "abc":
        read(bench, card_of(node, 0), card_of(node, 1), node=node)
    costs(bench, a=9.0, b=5.0, c=7.0)
    bench.touch("m")
    assert bench.where("m") == ["GPU-b0", "GPU-b1"]


NODES = "abcd"
seconds = st.one_of(st.none(), st.sampled_from([1.0, 3.0, 20.0, 160.0]))


@given(
    cards=st.lists(st.lists(st.sampled_from([8, 24, 48]), min_size=1, max_size=3), min_size=1, max_size=4),
    others=st.lists(st.sampled_from([4, 7, 20]), max_size=3),
    by_node=st.lists(seconds, min_size=4, max_size=4),
)
def test_no_other_card_that_would_do_as_well_loads_sooner(
    cards: list[list[int]], others: list[int], by_node: list[float | None]
) -> None:
    size = 6
    loaded = [model(f"x{number}", gb) for number, gb in enumerate(others)]
    bench = Bench.of([*loaded, model("m", size)], [])
    for node, own in zip(NODES, cards, strict=False):
        read(bench, *(card_of(node, index, gb) for index, gb in enumerate(own)), node=node)
    for each in loaded:
        bench.ask(each.name)
        if each.name in bench.loading:
            bench.ready(each.name)
    costs(bench, **dict(zip(NODES, by_node, strict=True)))
    ledger = bench.state.ledger
    used = set(ledger.claimed_devices())
    known = bench.state.models["m"].load_costs
    fitting = [
        (budget.device.id in used, known[budget.device.node])
        for budget in ledger.budgets()
        if budget.left_out is None and budget.budget_bytes >= size * GB
    ]
    possible = [
        (each.state is FileState.ABSENT, is_used, each.seconds)
        for is_used, each in fitting
        if each.seconds is not None
    ]
    bench.ask("m")
    if not possible:
        assert "m" not in bench.loading
        return
    (device,) = bench.where("m")
    node = ledger.readings[device].device.node
    is_fetched = known[node].state is FileState.ABSENT
    assert (is_fetched, device in used, known[node].seconds) == min(possible)


def test_machines_are_listed_fastest_first_and_what_they_lack_together() -> None:
    found = {"d": cost(None), "a": cost(41.0), "c": cost(None), "b": cost(3.0), "e": cost(160.0)}
    text = "b: warm, 3.0 s; a: local, 41.0 s; e: absent, 2 m 40 s; c: absent; and 1 more"
    assert costs_text(found) == text
    assert costs_text(found, "e").startswith("e: absent, 2 m 40 s; b: warm")
    assert [*missing_text(found)] == [f"c, d: {LACKS}"]
