"""The even layout against brute force, and what the search for a good one promises."""

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.balance import good_balance
from cotenant.services.assign.balance_exact import BalanceProblem, Cost, best_balance


@st.composite
def problems(draw: st.DrawFn, sizes: int = 5, gpus: int = 4) -> BalanceProblem:
    count = draw(st.integers(1, gpus))
    largest = draw(st.sampled_from([4, 3000, 9000, 20000]))
    totals = st.sampled_from([4094, 8192, 12288, 24564])
    bases = st.sampled_from([0, 0, 329, 5000, 30000])
    return BalanceProblem(
        tuple(draw(st.lists(st.integers(1, largest).map(lambda mib: mib * MIB), max_size=sizes))),
        tuple(draw(totals) * MIB for _ in range(count)),
        tuple(draw(bases) * MIB for _ in range(count)),
    )


def by_brute_force(problem: BalanceProblem) -> Cost:
    ways = itertools.product(range(len(problem.totals)), repeat=len(problem.sizes))
    return min(problem.cost(where) for where in ways)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_exact_layout_is_as_good_as_any(problem: BalanceProblem) -> None:
    least = by_brute_force(problem)
    found = problem.cost(best_balance(problem))
    assert found[0] == least[0]
    assert found[1] == pytest.approx(least[1], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ten_sizes_over_three_gpus_are_laid_out_exactly(seed: int) -> None:
    dice = Random(seed)
    problem = BalanceProblem(
        (20 * GIB, *(dice.randint(300, 8000) * MIB for _ in range(9))),
        tuple(dice.choice([8, 12, 24]) * GIB for _ in range(3)),
        tuple(dice.choice([0, 2]) * GIB for _ in range(3)),
    )
    least = by_brute_force(problem)
    found = problem.cost(best_balance(problem))
    assert found[0] == least[0]
    assert found[1] == pytest.approx(least[1], abs=1e-12)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(problems(sizes=12, gpus=4))
def test_the_search_never_beats_the_exact_layout(problem: BalanceProblem) -> None:
    exact, searched = problem.cost(best_balance(problem)), problem.cost(good_balance(problem))
    assert (exact[0], exact[1] - 1e-12) <= searched


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(problems(sizes=25, gpus=8))
def test_no_move_and_no_swap_betters_a_searched_layout(problem: BalanceProblem) -> None:
    where = good_balance(problem)
    least_overflow, least_spread = problem.cost(where)
    gain = 4e-8 * len(problem.totals) + 1e-9
    for i in range(len(where)):
        moves = [(*where[:i], gpu, *where[i + 1 :]) for gpu in range(len(problem.totals))]
        swaps = []
        for j in range(i):
            swapped = list(where)
            swapped[i], swapped[j] = where[j], where[i]
            swaps.append(tuple(swapped))
        for other in moves + swaps:
            assert problem.cost(other) >= (least_overflow, least_spread - gain)


@pytest.mark.parametrize("seed", range(3))
def test_sixty_four_sizes_over_eight_gpus_leave_them_even(seed: int) -> None:
    dice = Random(seed)
    problem = BalanceProblem(
        tuple(dice.randint(100, 3000) * MIB for _ in range(64)),
        tuple(dice.choice([12, 16, 24, 48]) * GIB for _ in range(8)),
        tuple(dice.randint(0, 4000) * MIB for _ in range(8)),
    )
    excess, spread = problem.cost(good_balance(problem))
    assert excess == 0
    assert (spread / 8) ** 0.5 < 0.001


def test_a_card_in_use_beyond_its_total_is_given_nothing() -> None:
    problem = BalanceProblem((GIB, GIB), (4 * GIB, 4 * GIB), (5 * GIB, 0))
    assert best_balance(problem) == (1, 1)
    assert good_balance(problem) == (1, 1)
