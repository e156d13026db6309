"""Cards that admit so many engines and no more, as in Exclusive_Process."""

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.residencies import RefusalCode
from cotenant.scheduling import events, invariants
from cotenant.scheduling.state import State
from tests.scheduling.harness import GB, Bench, card, fit_over, model

SMALL = [model("a", 2), model("b", 2), model("c", 2)]


def bench_of(*cards, admits, models=SMALL, **settings) -> Bench:
    bench = Bench.of(models, [], **settings)
    bench.cards = list(cards)
    bench.read(*cards, admits=admits)
    return bench


def devices_of(bench: Bench) -> dict[str, set[str]]:
    return {r.model: set(r.bytes_by_device) for r in bench.state.residencies.values()}


def test_a_second_model_goes_to_another_card_though_the_first_has_room() -> None:
    bench = bench_of(card(0), card(1, 12), admits={0: 1})
    bench.touch("a")
    bench.touch("b")
    bench.touch("c")
    assert devices_of(bench) == {"a": {"GPU-0"}, "b": {"GPU-1"}, "c": {"GPU-1"}}


def test_an_idle_model_makes_place_for_a_second() -> None:
    bench = bench_of(card(0), admits={0: 1})
    bench.touch("a")
    bench.ask("b")
    assert "for b" in bench.told(DecisionKind.EVICT, "a")[0]
    bench.gone("a")
    bench.ready("b")
    assert devices_of(bench) == {"b": {"GPU-0"}}


def test_a_second_model_waits_for_a_busy_one_and_is_told_why() -> None:
    bench = bench_of(card(0), admits={0: 1})
    (busy,) = bench.load("a")
    waiting = bench.ask("b", wait_s=5)
    assert "it admits no more engines" in bench.told(DecisionKind.WAITING, "b")[0]
    bench.wait(6)
    assert "GPU 0 card: it admits no more engines" in bench.refused[waiting].text
    again = bench.ask("b")
    bench.done(busy)
    bench.gone("a")
    bench.ready("b")
    assert again in bench.granted


def test_a_second_model_beside_a_pinned_one_is_refused_with_the_reason() -> None:
    bench = bench_of(card(0), card(1, 1), admits={0: 1}, models=[model("a", 2, pinned=True), model("b", 2)])
    bench.touch("a")
    refusal = bench.refused[bench.ask("b")]
    assert refusal.code is RefusalCode.DOES_NOT_FIT
    assert "does not fit: next to a (pinned): it needs 2000000000 bytes" in refusal.text
    assert "; GPU 0 card: it admits no more engines" in refusal.text


def test_as_many_engines_as_a_card_admits_share_it() -> None:
    bench = bench_of(card(0), admits={0: 2})
    for name in "abc":
        bench.touch(name) if name != "c" else bench.ask(name)
    assert len(bench.told(DecisionKind.EVICT)) == 1


def test_the_cheapest_of_many_goes_even_where_no_byte_is_short() -> None:
    many = [model(f"m{number}", 0.5) for number in range(15)]
    bench = bench_of(card(0), admits={0: 14}, models=many)
    for number in range(14):
        bench.now += 1
        bench.touch(f"m{number}")
    bench.ask("m14")
    assert list(bench.stopping) == ["m0"]


def test_a_model_over_two_cards_takes_a_place_on_each() -> None:
    wide = model("wide", 0, fit=fit_over([9 * GB, 7 * GB]))
    bench = bench_of(card(0), card(1), admits={0: 1, 1: 1}, models=[*SMALL, wide])
    bench.touch("a")
    bench.touch("b")
    bench.ask("wide")
    assert set(bench.stopping) == {"a", "b"}
    bench.gone("a")
    bench.gone("b")
    bench.ready("wide")
    bench.ask("c")
    assert "wide" not in bench.stopping, "it is in use"
    assert "c" not in bench.loading


def test_a_place_that_came_free_is_kept_while_another_card_is_still_being_cleared() -> None:
    wide = model("wide", 0, fit=fit_over([9 * GB, 7 * GB]))
    bench = bench_of(card(0), card(1), admits={0: 1, 1: 1}, models=[*SMALL, wide])
    bench.touch("a")
    bench.touch("b")
    bench.ask("wide")
    bench.gone("a")
    bench.ask("c")
    assert "c" not in bench.loading, "the place on card 0 is the wide model's"
    bench.gone("b")
    assert set(bench.loading) == {"wide"}


def test_place_kept_for_one_model_is_not_given_to_another() -> None:
    bench = bench_of(card(0), admits={0: 1})
    bench.touch("a")
    bench.ask("b")
    bench.ask("c")
    bench.gone("a")
    assert set(bench.loading) == {"b"}


def test_a_card_that_comes_to_admit_fewer_keeps_its_engines_and_is_marked() -> None:
    bench = bench_of(card(0), admits={0: None})
    bench.touch("a")
    bench.touch("b")
    bench.read(card(0), admits={0: 1})
    assert "has 2 engines and admits 1" in bench.told(DecisionKind.OVERCOMMITTED)[0]
    assert bench.state.crowded
    assert not bench.stopping
    bench.read(card(0), admits={0: 2})
    assert not bench.state.crowded


def test_the_law_on_engines_can_be_broken() -> None:
    bench = bench_of(card(0), admits={0: None})
    bench.touch("a")
    bench.touch("b")
    bench.read(card(0), admits={0: 1})
    state: State = bench.state
    state.crowded = set()
    with pytest.raises(invariants.InvariantViolation, match="more than the 1 engines it admits"):
        invariants.check(state)


def test_prefetching_takes_no_place_that_there_is_not() -> None:
    bench = bench_of(card(0), admits={0: 1}, prefetch=True)
    for _ in range(8):
        bench.touch("b")
        bench.now += 2
    bench.ask("a")
    bench.gone("b")
    bench.ready("a")
    bench.send(events.TimerFired(bench.now))
    assert bench.state.models["b"].demand.chance_soon(bench.now, bench.state.all_gaps) > 0.5
    assert set(bench.loading) == set()
