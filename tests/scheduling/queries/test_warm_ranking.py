"""Which models' files are worth their place in host RAM."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.units import GIB
from cotenant.scheduling.events import LoadAsked, PinAsked
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.queries.warm_ranking import WarmCandidate, rank, warm_candidates
from tests.scheduling.harness import Bench, card
from tests.scheduling.harness import model as a_model

BIG, SMALL = WarmCandidate("big", 40 * GIB, worth=8.0), WarmCandidate("small", 4 * GIB, worth=1.0)
"""The small one is worth more per byte, the big one more in all."""


def test_what_saves_most_time_per_byte_comes_first_and_the_last_gets_what_is_left() -> None:
    assert rank([BIG, SMALL], 10 * GIB, {}) == {"small": 4 * GIB, "big": 6 * GIB}
    assert rank([BIG, SMALL], 3 * GIB, {}) == {"small": 3 * GIB}
    assert rank([BIG, SMALL], 0, {}) == {}


def test_what_nobody_wants_is_not_kept() -> None:
    assert rank([WarmCandidate("idle", GIB, 0.0), WarmCandidate("elsewhere", 0, 5.0)], GIB, {}) == {}


def test_what_is_kept_gives_way_only_to_what_is_worth_clearly_more() -> None:
    kept, near, far = (
        WarmCandidate(name, GIB, worth) for name, worth in zip("knf", (1, 1.4, 1.6), strict=True)
    )
    assert rank([kept, near], GIB, {"k": GIB}) == {"k": GIB}
    assert rank([kept, near], GIB, {}) == {"n": GIB}
    assert rank([kept, far], GIB, {"k": GIB}) == {"f": GIB}


def test_a_loaded_model_gets_what_the_others_leave() -> None:
    loaded = WarmCandidate("loaded", GIB, 100.0, loaded=True)
    assert rank([loaded, SMALL], 4 * GIB, {"loaded": GIB}) == {"small": 4 * GIB}
    assert rank([loaded, SMALL], 5 * GIB, {}) == {"small": 4 * GIB, "loaded": GIB}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 9), st.booleans()), max_size=6),
    st.integers(-5, 50),
    st.sets(st.integers(0, 5)),
)
def test_the_budget_is_never_exceeded_and_a_second_ranking_changes_nothing(
    models: list[tuple[int, float, bool]], budget: int, kept: set[int]
) -> None:
    candidates = [WarmCandidate(str(number), *facts) for number, facts in enumerate(models)]
    chosen = rank(candidates, budget, {str(number): 1 for number in kept})
    assert sum(chosen.values()) <= max(0, budget)
    assert all(0 < chosen[c.model] <= c.file_bytes for c in candidates if c.model in chosen)
    assert rank(candidates, budget, chosen) == rank(candidates, budget, rank(candidates, budget, chosen))


def test_a_load_that_was_fast_as_the_file_was_kept_counts_as_a_cold_one() -> None:
    bench = Bench.of([a_model("a", 1)], [card(0)])
    model: ModelState = bench.state.models["a"]
    model.demand.arrive(0.0, bench.state.all_gaps)
    model.load_s = 0.1
    (candidate,) = warm_candidates(bench.state, {"a": GIB, "unknown": GIB}, 1.0)
    assert candidate.worth == pytest.approx(model.demand.rate(1.0) * model.spec.load_s)
    assert not candidate.loaded


def test_a_model_that_stays_loaded_needs_no_place() -> None:
    bench = Bench.of([a_model("a", 20), a_model("b", 20)], [card(0), card(1)])
    for name in ("a", "b"):
        bench.send(LoadAsked(0.0, name))
    bench.send(PinAsked(0.0, "a", True))
    found = warm_candidates(bench.state, {"a": GIB, "b": GIB}, 1.0)
    assert [(each.model, each.loaded) for each in found] == [("b", True)]
