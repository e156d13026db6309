"""How long a loaded model keeps its room while others wait: not at all, unless it is in demand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.scheduling.residence import worth_keeping_s
from tests.scheduling.harness import Bench, card, model

LOAD_S = 20.0


def swapped() -> Bench:
    """Two models of which one fits; a is ready."""
    bench = Bench.of([model(name, 16, load_s=LOAD_S, slots=4) for name in "ab"], [card(0)])
    bench.ask("a")
    load(bench, "a")
    return bench


def load(bench: Bench, name: str) -> None:
    """Let the model load, which takes as long as expected, and serve all that wait."""
    bench.now += LOAD_S
    bench.ready(name)
    serve(bench)


def serve(bench: Bench) -> None:
    for ticket in [*bench.granted]:
        bench.done(ticket)


def use(bench: Bench, name: str, idle_s: float, times: int) -> None:
    """Have requests come and be answered, each so long after the one before."""
    for _ in range(times):
        bench.wait(idle_s)
        bench.ask(name)
        serve(bench)


def test_an_idle_model_goes_at_once_though_it_has_just_been_loaded_for_long() -> None:
    bench = swapped()
    bench.ask("b")
    assert "a" in bench.stopping


def test_a_model_that_is_asked_again_at_once_is_kept_until_that_is_not_so() -> None:
    bench = swapped()
    use(bench, "a", 2.0, times=6)
    bench.wait(1.0)
    bench.ask("b")
    assert not bench.stopping
    bench.wait(0.9)
    assert not bench.stopping, "it is usually asked again after two seconds"
    bench.wait(0.2)
    assert "a" in bench.stopping


def test_a_model_in_demand_goes_once_others_have_waited_as_long_as_its_load_takes() -> None:
    bench = swapped()
    use(bench, "a", 2.0, times=6)
    asked_at = bench.now
    bench.ask("b")
    while "a" not in bench.stopping:
        bench.wait(1.0)
        assert bench.now < asked_at + 2 * LOAD_S
        if "a" not in bench.stopping and bench.now - bench.state.models["a"].last_used >= 2.0:
            bench.ask("a")
            serve(bench)
    assert bench.now - asked_at == pytest.approx(LOAD_S, abs=2.0)


def test_the_more_requests_wait_the_sooner_it_goes() -> None:
    bench = swapped()
    use(bench, "a", 2.0, times=6)
    for _ in range(11):
        bench.ask("b")
    assert "a" in bench.stopping, "eleven would wait 22 s to save a load of 20"


def test_a_model_that_is_asked_again_only_after_long_is_not_kept() -> None:
    bench = swapped()
    use(bench, "a", 1.5 * LOAD_S, times=6)
    bench.ask("b")
    assert "a" in bench.stopping


def test_who_uses_two_models_in_turn_waits_for_nothing_but_the_swap() -> None:
    bench = swapped()
    for name, other in 6 * [("b", "a"), ("a", "b")]:
        bench.wait(0.5)
        bench.ask(name)
        assert other in bench.stopping
        bench.gone(other)
        load(bench, name)
    assert {*bench.state.models["a"].demand.idle_times} == {math.inf}


def test_the_least_time_of_residence_that_an_operator_states_holds() -> None:
    bench = Bench.of([model("a", 16), model("b", 16)], [card(0)], min_residency_s=5.0)
    bench.touch("a")
    bench.wait(1.0)
    bench.ask("b")
    assert not bench.stopping
    bench.wait(4.1)
    assert "a" in bench.stopping


@given(
    st.lists(st.floats(0, 100) | st.just(math.inf), max_size=8),
    st.floats(0.1, 100),
    st.integers(1, 20),
)
def test_a_model_is_kept_where_that_costs_less_than_its_load(
    idle_times: list[float], load_s: float, waiting: int
) -> None:
    def cost(kept_s: float) -> float:
        """Return what is waited if the past repeats itself: until it is used, or until a load after that."""
        return sum(
            waiting * min(idle_s, max(0.0, kept_s)) + load_s * (idle_s > kept_s) for idle_s in idle_times
        )

    kept_s = worth_keeping_s(idle_times, load_s, waiting)
    least = min([cost(-1.0), *(cost(idle_s) for idle_s in idle_times if idle_s < math.inf)])
    assert cost(kept_s or -1.0) <= least + waiting * len(idle_times) * 0.01
    assert kept_s <= load_s * len(idle_times) / waiting + 0.01
