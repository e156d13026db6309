"""The searches against brute force over every contiguous partition."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.analysis.footprint import Costs
from cotenant.domain.models import Projector, Recipe
from cotenant.domain.units import MIB
from cotenant.planning.layer_split import Range, SplitProblem, balance, fastest, fill, least_fraction
from tests.support.models.shapes import dense, recipes, shapes


@st.composite
def problems(draw: st.DrawFn) -> SplitProblem:
    shape = draw(shapes())
    begin = draw(st.integers(0, shape.n_layers))
    projector = draw(st.sampled_from([None, None, Projector(30 * MIB, 9 * MIB, 5 * MIB)]))
    costs = Costs(shape, draw(recipes()), begin=begin, projector=projector)
    n_devices = draw(st.integers(1, 4))
    budgets = tuple(draw(st.integers(-10, 400)) * MIB for _ in range(n_devices))
    bandwidths = tuple(float(draw(st.integers(100, 1000))) for _ in range(n_devices))
    return SplitProblem(costs, budgets, bandwidths)


def partitions(problem: SplitProblem) -> Iterator[tuple[Range, ...]]:
    n_devices = len(problem.budgets)
    inner = itertools.combinations_with_replacement(range(problem.begin, problem.end + 1), n_devices - 1)
    for cuts in inner:
        edges = (problem.begin, *cuts, problem.end)
        yield tuple(itertools.pairwise(edges))


def used(ranges: tuple[Range, ...]) -> int:
    return sum(stop > start for start, stop in ranges)


def needs(problem: SplitProblem, ranges: tuple[Range, ...]) -> list[int]:
    many = used(ranges) > 1
    return [problem.costs.parts(start, stop, many=many).total for start, stop in ranges]


def fits(problem: SplitProblem, ranges: tuple[Range, ...]) -> bool:
    return all(
        need <= budget
        for need, budget, (start, stop) in zip(needs(problem, ranges), problem.budgets, ranges, strict=True)
        if stop > start
    )


def fraction(problem: SplitProblem, ranges: tuple[Range, ...]) -> float:
    return max(
        need / max(budget, 1) for need, budget in zip(needs(problem, ranges), problem.budgets, strict=True)
    )


def seconds(problem: SplitProblem, ranges: tuple[Range, ...]) -> float:
    return sum(
        problem.costs.read_bytes(start, stop) / bandwidth
        for (start, stop), bandwidth in zip(ranges, problem.bandwidths, strict=True)
        if stop > start
    )


def check_partition(problem: SplitProblem, ranges: tuple[Range, ...]) -> None:
    assert len(ranges) == len(problem.budgets)
    assert ranges[0][0] == problem.begin
    assert ranges[-1][1] == problem.end
    for (_, stop), (start, _) in itertools.pairwise(ranges):
        assert stop == start


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(problems())
def test_fill_uses_the_fewest_devices_that_any_contiguous_partition_can(problem: SplitProblem) -> None:
    feasible = [ranges for ranges in partitions(problem) if fits(problem, ranges)]
    found = fill(problem)
    if not feasible:
        assert found is None
        return
    assert found is not None
    check_partition(problem, found)
    assert fits(problem, found)
    fewest = min(map(used, feasible))
    assert used(found) == fewest
    sizes = [tuple(stop - start for start, stop in ranges) for ranges in feasible if used(ranges) == fewest]
    assert tuple(stop - start for start, stop in found) == max(sizes)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(problems())
def test_balance_reaches_the_least_maximum_fraction(problem: SplitProblem) -> None:
    best = min(fraction(problem, ranges) for ranges in partitions(problem))
    value, ranges = least_fraction(problem)
    check_partition(problem, ranges)
    assert value == best or abs(value - best) <= 1e-9 * best
    assert abs(fraction(problem, ranges) - best) <= 1e-9 * max(best, 1)
    found = balance(problem)
    assert (found is not None) == any(fits(problem, ranges) for ranges in partitions(problem))
    if found is not None:
        assert fits(problem, found)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(problems())
def test_speed_reads_a_token_in_the_least_time(problem: SplitProblem) -> None:
    feasible = [ranges for ranges in partitions(problem) if fits(problem, ranges)]
    found = fastest(problem)
    if not feasible:
        assert found is None
        return
    assert found is not None
    check_partition(problem, found)
    assert fits(problem, found)
    best = min(seconds(problem, ranges) for ranges in feasible)
    assert abs(seconds(problem, found) - best) <= 1e-9 * max(best, 1)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_fast_total_is_the_sum_of_the_parts(problem: SplitProblem) -> None:
    for start in range(problem.begin, problem.end + 1):
        for stop in range(start, problem.end + 1):
            for many in (False, True):
                assert (
                    problem.costs.total(start, stop, many)
                    == problem.costs.parts(start, stop, many=many).total
                )


def test_a_device_too_small_for_any_layer_is_passed_over() -> None:
    costs = Costs(dense(4, 100 * MIB), Recipe())
    problem = SplitProblem(costs, (300 * MIB, 50 * MIB, 300 * MIB))
    found = fill(problem)
    assert found is not None
    assert [stop - start for start, stop in found] == [2, 0, 3]
