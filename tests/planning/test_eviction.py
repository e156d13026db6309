"""Which models go: the cheapest that free enough, and no others."""

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.devices import DeviceId
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyId
from cotenant.planning.eviction import Candidate, cheapest_anywhere, cheapest_on_device, freed_by

CARD, OTHER = DeviceId("GPU-0"), DeviceId("GPU-1")
FITS = Placement("new", Recipe(), 1, 1, (), host=Parts())


def candidate(number: int, cost: float, size: int, device: DeviceId = CARD) -> Candidate:
    return Candidate(ResidencyId(number), cost, {device: size})


def numbers(victims: tuple[Candidate, ...] | None) -> list[int] | None:
    return None if victims is None else sorted(victim.residency for victim in victims)


@pytest.mark.parametrize(
    ("sizes_and_costs", "needed", "min_victims", "victims"),
    [
        ([(10, 1.0), (10, 2.0)], 5, 0, [0]),
        ([(10, 1.0), (4, 0.5), (4, 0.6)], 8, 0, [0]),  # one that costs less than two small ones
        ([(10, 9.0), (4, 0.5), (4, 0.6)], 8, 0, [1, 2]),  # two that cost less than a large one
        ([(10, 1.0), (10, 1.0)], 5, 0, [0]),  # of equals, the lower id
        ([(4, 1.0), (4, 1.0)], 9, 0, None),
        ([(4, 1.0), (4, 2.0)], 0, 0, []),
        ([(4, 1.0), (4, 2.0)], 0, 1, [0]),  # no bytes are missing, but a place
        ([(4, 1.0)], 0, 2, None),
    ],
)
def test_the_cheapest_sufficient_set_goes(
    sizes_and_costs: list[tuple[int, float]], needed: int, min_victims: int, victims: list[int] | None
) -> None:
    candidates = [candidate(n, cost, size) for n, (size, cost) in enumerate(sizes_and_costs)]
    assert numbers(cheapest_on_device(candidates, CARD, needed, min_victims)) == victims


def test_memory_of_another_device_does_not_help() -> None:
    assert cheapest_on_device([candidate(1, 0.0, 100, OTHER)], CARD, 1) is None


few = st.lists(st.tuples(st.integers(1, 20), st.floats(0, 10)), max_size=6)


@given(few, st.integers(0, 60))
def test_no_other_set_that_frees_enough_costs_less(drawn: list[tuple[int, float]], needed: int) -> None:
    candidates = [candidate(n, cost, size) for n, (size, cost) in enumerate(drawn)]
    found = cheapest_on_device(candidates, CARD, needed)
    costs = [
        sum(c.cost for c in chosen)
        for count in range(len(candidates) + 1)
        for chosen in combinations(candidates, count)
        if sum(c.bytes_by_device[CARD] for c in chosen) >= needed
    ]
    assert (None if found is None else sum(c.cost for c in found)) == pytest.approx(min(costs, default=None))


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 10)), min_size=13, max_size=30), st.data())
def test_of_many_candidates_each_victim_is_needed(
    drawn: list[tuple[int, float]], data: st.DataObject
) -> None:
    candidates = [candidate(n, cost, size) for n, (size, cost) in enumerate(drawn)]
    needed = data.draw(st.integers(1, sum(size for size, _ in drawn)))
    found = cheapest_on_device(candidates, CARD, needed)
    assert found is not None
    freed = sum(c.bytes_by_device[CARD] for c in found)
    assert freed >= needed
    assert all(freed - c.bytes_by_device[CARD] < needed for c in found)


def test_over_several_devices_only_the_needed_victims_go() -> None:
    candidates = [candidate(1, 1.0, 4), candidate(2, 2.0, 4, OTHER), candidate(3, 3.0, 8, OTHER)]

    def fits(victims: Sequence[Candidate]) -> Placement | None:
        freed, _ = freed_by(victim.bytes_by_device for victim in victims)
        return FITS if freed[CARD] >= 4 and freed[OTHER] >= 8 else None

    found = cheapest_anywhere(candidates, fits)
    assert found is not None
    assert numbers(found[0]) == [1, 3]
    assert cheapest_anywhere(candidates[:2], fits) is None


def test_victims_free_bytes_and_places_by_device() -> None:
    both = Candidate(ResidencyId(9), 1.0, {CARD: 1, OTHER: 2})
    freed, engines = freed_by(victim.bytes_by_device for victim in (candidate(1, 1.0, 10), both))
    assert freed == {CARD: 11, OTHER: 2}
    assert engines == {CARD: 2, OTHER: 1}
