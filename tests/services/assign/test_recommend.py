"""Which strategy is recommended, why, and what a tie says."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.recommend import WEIGHTS, Recommendation, ScoredStrategy, recommend
from cotenant.services.assign.strategies import assign
from cotenant.services.model import Assignment, AssignmentPlan, Service, ServiceDevice, ServiceRole, Strategy
from tests.services.assign.service_cases import gpu, gpus, needing, on, service_lists


def scored(
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    *,
    measured: Mapping[str, int] | None = None,
    present: Strategy = Strategy.VRAM_BASED,
    changes: Mapping[Strategy, int] | None = None,
) -> Recommendation:
    plans = [assign(strategy, services, devices) for strategy in Strategy]
    counted = [(plan, (changes or {}).get(plan.strategy, 0)) for plan in plans]
    return recommend(counted, services, devices, measured or {}, present)


def of(found: Recommendation, strategy: Strategy) -> ScoredStrategy:
    return next(each for each in found.strategies if each.strategy is strategy)


def one_plan(
    services: Sequence[Service], devices: Sequence[ServiceDevice], *where: Assignment
) -> ScoredStrategy:
    plan = AssignmentPlan(Strategy.MANUAL, tuple(where))
    return recommend([(plan, 0)], services, devices, {}, Strategy.MANUAL).strategies[0]


@settings(max_examples=40)
@given(service_lists(enabled=True), gpus(), st.permutations(range(5)))
def test_a_score_is_of_100_points_and_the_order_of_gpus_does_not_matter(services, devices, order):
    found = scored(services, devices)
    for each in found.strategies:
        assert all(-1e-9 <= each.points[name] <= WEIGHTS[name] + 1e-9 for name in WEIGHTS)
        assert 0 <= each.score <= 100
    able = [each for each in found.strategies if any(service.gpus for service in each.assignments)]
    if found.recommended is None:
        assert not able
    else:
        assert of(found, found.recommended).score == max(each.score for each in able)
    shuffled = [devices[i] for i in order if i < len(devices)]
    again = scored(services, shuffled)
    assert (again.text, again.tie) == (found.text, found.tie)
    assert [each.score for each in again.strategies] == [each.score for each in found.strategies]


def test_a_gpu_that_is_overfilled_costs_most_and_is_named():
    big, small, need = gpu(0, 24000), gpu(1, 4000), needing("a", 8000)
    fits, over = (
        one_plan([need], [big, small], on(need, big)),
        one_plan([need], [big, small], on(need, small)),
    )
    assert (fits.fits, fits.worst_over_bytes) == (True, 0)
    assert (over.fits, over.worst_over_bytes) == (False, 4000 * MIB)
    assert fits.points["fit"] == 40
    assert over.points["fit"] == 0
    assert over.reason.startswith("GPU 1 is overfilled by 3.9 GiB; ")


def test_an_llm_that_is_left_room_beats_one_whose_gpu_is_full():
    llm = needing("llm", 20000, role=ServiceRole.LLM)
    others = [needing(name, 2000) for name in "abc"]
    found = scored([llm, *others], [gpu(0, 24000), gpu(1, 16000)])
    isolated, even = of(found, Strategy.ISOLATION_FIRST), of(found, Strategy.VRAM_BASED)
    assert isolated.llm_headroom_bytes == 4000 * MIB
    assert isolated.points["llm_headroom"] == 20
    assert isolated.points["llm_headroom"] >= even.points["llm_headroom"]
    assert of(found, found.recommended or Strategy.MANUAL).llm_headroom_bytes == 4000 * MIB


def test_critical_services_are_measured_by_the_speed_of_their_gpus():
    fast, slow = gpu(0, 8000, speed=800.0), gpu(1, 24000, speed=200.0)
    critical = needing("a", 1000, latency_critical=True)
    found = scored([critical], [fast, slow])
    assert of(found, Strategy.LATENCY_OPTIMIZED).critical_speed == 1.0
    assert of(found, Strategy.VRAM_BASED).critical_speed == 0.25
    assert found.recommended is Strategy.LATENCY_OPTIMIZED
    assert "loses 15 for the speed of critical services" in found.text


def test_measured_use_counts_in_place_of_the_stated_need():
    stated = needing("a", 3000)
    devices = [gpu(0, 4000)]
    assert of(scored([stated], devices), Strategy.VRAM_BASED).fits
    seen = scored([stated], devices, measured={"a": 5000 * MIB})
    assert of(seen, Strategy.VRAM_BASED).worst_over_bytes == 1000 * MIB


def test_a_budget_bounds_what_a_measured_service_takes():
    limited = needing("a", 6000, budget_env="BUDGET")
    devices = [gpu(0, 4000)]
    found = of(scored([limited], devices, measured={"a": 5000 * MIB}), Strategy.VRAM_BASED)
    assert found.fits
    assert found.memory_share == pytest.approx(3.7 * GIB / (6000 * MIB))
    assert "budgets leave 63% of the memory needed" in found.reason


def test_equal_scores_are_explained_and_the_present_strategy_stays():
    services, devices = [needing("a", 1000)], [gpu(0, 8000)]
    found = scored(services, devices, present=Strategy.BALANCED)
    assert found.recommended is Strategy.BALANCED
    assert found.tie == (
        "VRAM-based and Latency-optimized and Isolation-first score the same, since they assign every "
        "service alike; Balanced is the present one."
    )
    assert scored(services, devices, present=Strategy.MANUAL).recommended is Strategy.VRAM_BASED


def test_fewer_changed_containers_count():
    services, devices = [needing("a", 1000), needing("b", 1000)], [gpu(0, 8000)]
    many = dict.fromkeys(Strategy, 2)
    found = scored(services, devices, changes={**many, Strategy.BALANCED: 0})
    assert found.recommended is Strategy.BALANCED
    assert "loses 10 for containers that change" in found.text


def test_manual_without_an_assignment_is_no_recommendation_and_counts_where_cuda_puts_services():
    services, devices = [needing("a", 9000)], [gpu(0, 8000), gpu(1, 24000)]
    found = scored(services, devices, present=Strategy.MANUAL)
    assert of(found, Strategy.MANUAL).worst_over_bytes == 1000 * MIB
    assert found.recommended is Strategy.VRAM_BASED


@pytest.mark.parametrize(
    ("services", "devices", "why"),
    [
        ([], [gpu(0, 8000)], "no service is configured"),
        ([needing("a", 1000)], [], "no service can be pinned"),
        ([needing("a", 1000)], [gpu(0, 8000, healthy=False)], "no service can be pinned"),
    ],
)
def test_without_a_choice_none_is_recommended(services, devices, why):
    found = scored(services, devices)
    assert found.recommended is None
    assert found.text == f"No strategy is recommended: {why}."
