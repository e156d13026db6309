"""What advice changes, and what it never does."""

import math

import pytest

from cotenant.domain.advisors import MAX_PREFETCHES, MAX_SOFT_PINS, Advice, Hint
from cotenant.domain.decisions import DecisionKind
from cotenant.scheduling import events
from tests.scheduling.harness import Bench, card, model


def advise(bench: Bench, *, age_s: float = 0.0, shadow: bool = False, **hints: dict) -> None:
    told = {name: Hint(bench.state.models[name].loads, **hint) for name, hint in hints.items()}
    bench.send(events.AdviceGiven(bench.now, Advice(bench.now - age_s, told, shadow=shadow)))


def three_on_one_card() -> Bench:
    """Rooms for two of three: a was used before b."""
    bench = Bench.of([model("a", 10), model("b", 10), model("c", 10)], [card(0, 24)])
    bench.touch("a")
    bench.wait(20)
    bench.touch("b")
    bench.wait(20)
    return bench


@pytest.mark.parametrize(
    ("factor", "gone_after_s"), [(2.0, 600), (0.5, 150), (1e9, 1200), (-3.0, 75), (math.nan, 300)]
)
def test_a_keep_alive_is_multiplied_within_bounds(factor: float, gone_after_s: float) -> None:
    bench = Bench.of([model("a", 10, keep_alive_s=300.0)], [card(0)])
    bench.touch("a")
    advise(bench, a={"keep_alive_factor": factor})
    bench.wait(min(gone_after_s, 600) - 1)
    assert not bench.stopping
    bench.wait(gone_after_s)
    assert "a" in bench.stopping


def test_a_factor_lapses_and_the_models_own_keep_alive_holds_again() -> None:
    bench = Bench.of([model("a", 10, keep_alive_s=300.0)], [card(0)])
    bench.touch("a")
    advise(bench, a={"keep_alive_factor": 4.0})
    bench.wait(599)
    assert not bench.stopping
    bench.wait(2)
    assert "a" in bench.stopping
    assert not bench.state.advised


def test_why_tells_that_the_advisor_shortened_a_stay() -> None:
    bench = Bench.of([model("a", 10, keep_alive_s=300.0)], [card(0)])
    bench.touch("a")
    advise(bench, a={"keep_alive_factor": 0.5})
    bench.wait(151)
    assert "its keep-alive, ×0.5 by the advisor" in bench.told(DecisionKind.UNLOAD, "a")[0]


def test_a_clients_own_keep_alive_is_left_alone() -> None:
    bench = Bench.of([model("a", 10, keep_alive_s=300.0)], [card(0)])
    bench.touch("a")
    bench.tickets += 1
    asked = events.RequestArrived(bench.now, bench.tickets, "a", bench.now + 60, 0, 100.0)  # type: ignore[arg-type]
    bench.send(asked)
    bench.done(asked.ticket)
    advise(bench, a={"keep_alive_factor": 4.0})
    bench.wait(101)
    assert "a" in bench.stopping


def test_a_soft_pin_makes_another_go_and_why_says_so() -> None:
    bench = three_on_one_card()
    advise(bench, a={"soft_pin_s": 100.0})
    bench.ask("c")
    assert "b" in bench.stopping
    assert bench.told(DecisionKind.ADVISED, "a")[-1] == "kept by the advisor: b is evicted in its place"


def test_without_advice_the_other_goes() -> None:
    bench = three_on_one_card()
    bench.ask("c")
    assert "a" in bench.stopping


def test_soft_pins_on_everything_stop_nobody_from_being_served() -> None:
    bench = three_on_one_card()
    advise(bench, **{name: {"soft_pin_s": 1e9} for name in "abc"})
    bench.ask("c")
    assert bench.stopping, "somebody is evicted all the same"


def test_soft_pins_are_few() -> None:
    names = [f"m{number}" for number in range(12)]
    bench = Bench.of([model(name, 1) for name in names], [card(0)])
    advise(bench, **{name: {"soft_pin_s": 60.0} for name in names})
    assert sum(bool(s.pinned_until) for s in bench.state.advised.values()) == MAX_SOFT_PINS


def test_a_soft_pin_ends() -> None:
    bench = three_on_one_card()
    advise(bench, a={"soft_pin_s": 30.0})
    bench.wait(31)
    bench.ask("c")
    assert "a" in bench.stopping


def test_what_is_advised_ahead_is_loaded_into_free_memory_only() -> None:
    bench = three_on_one_card()
    advise(bench, c={"prefetch": True})
    assert not bench.loading
    assert not bench.stopping, "nobody is evicted for it"
    bench.send(events.UnloadAsked(bench.now, "a"))
    bench.gone("a")
    assert "c" in bench.loading
    assert "the advisor expects it, and there is room" in bench.told(DecisionKind.LOAD, "c")[0]


def test_what_is_advised_ahead_is_loaded_once_and_not_again_when_it_has_gone() -> None:
    bench = Bench.of([model("a", 10, keep_alive_s=5.0)], [card(0)])
    advise(bench, a={"prefetch": True})
    bench.ready("a")
    bench.wait(6)
    bench.gone("a")
    bench.wait(60)
    assert not bench.loading


def test_few_are_loaded_ahead_for_one_advice() -> None:
    names = [f"m{number}" for number in range(6)]
    bench = Bench.of([model(name, 1) for name in names], [card(0)])
    advise(bench, **{name: {"prefetch": True} for name in names})
    while bench.loading:
        bench.ready(next(iter(bench.loading)))
    assert len(bench.state.residencies) == MAX_PREFETCHES


def test_advice_that_took_too_long_or_met_other_models_is_dropped() -> None:
    bench = three_on_one_card()
    advise(bench, age_s=121.0, a={"soft_pin_s": 100.0})
    assert not bench.state.advised
    bench.send(events.ModelsChanged(bench.now, tuple(m.spec for m in bench.state.models.values())))
    advise(bench, age_s=5.0, a={"soft_pin_s": 100.0})
    assert not bench.state.advised
    assert [text for text in bench.told(DecisionKind.ADVISED) if text.startswith("advice dropped")] != []


def test_a_hint_for_a_model_that_was_loaded_meanwhile_is_dropped() -> None:
    bench = three_on_one_card()
    hint = Hint(bench.state.models["a"].loads - 1, soft_pin_s=100.0)
    bench.send(events.AdviceGiven(bench.now, Advice(bench.now, {"a": hint})))
    assert not bench.state.advised


def test_a_shadow_tells_and_changes_nothing() -> None:
    bench = three_on_one_card()
    advise(bench, shadow=True, a={"soft_pin_s": 100.0}, c={"prefetch": True})
    assert not bench.state.advised
    assert bench.told(DecisionKind.ADVISED, "a")[0].startswith("the advisor would have it: evicted after")
