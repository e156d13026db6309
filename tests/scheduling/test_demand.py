"""How often a model is requested: for people the last minute, for decisions what to expect."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.scheduling.demand import Demand, GapHistogram

GAPS = GapHistogram()


def demand_of(*times: float) -> Demand:
    demand = Demand()
    for at in times:
        demand.arrive(at, GAPS)
    return demand


def test_the_last_minute_counts_whole_and_nothing_older() -> None:
    busy = demand_of(*(1000 + number / 6.19 for number in range(186)))
    assert busy.last_minute_rate(1030) == pytest.approx(186 / 60)
    assert busy.last_minute_rate(1092) == 0
    assert Demand().last_minute_rate(5) == 0


@given(st.lists(st.floats(0, 300), max_size=200).map(sorted), st.floats(0, 400))
def test_the_last_minute_is_counted_to_the_second(times: list[float], later: float) -> None:
    now = max([*times, later])
    counted = round(demand_of(*times).last_minute_rate(now) * 60)
    assert sum(at > now - 59 for at in times) <= counted <= sum(at > now - 61 for at in times)


def test_what_is_kept_of_it_is_bounded() -> None:
    assert len(demand_of(*(number / 10 for number in range(10_000)))._by_second) <= 60


def test_a_model_that_was_busy_long_ago_is_expected_less_than_one_used_since() -> None:
    was_busy, used_since = demand_of(*(number / 6 for number in range(600))), demand_of(290.0, 295.0, 300.0)
    assert was_busy.rate(500) < used_since.rate(500)
    steady = demand_of(*map(float, range(600)))
    assert steady.rate(600) == pytest.approx(steady._rate, rel=0.01)
