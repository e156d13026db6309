"""What each strategy guarantees, whatever the services and the GPUs."""

import itertools
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.units import GIB
from cotenant.services.assign.balance_exact import overflow, spread
from cotenant.services.assign.memory import FreeMemory, adjusted_budgets, needed_bytes
from cotenant.services.assign.strategies import RULES, assign
from cotenant.services.model import (
    AssignmentPlan,
    Service,
    ServiceDevice,
    ServiceRole,
    Strategy,
    WarningKind,
)
from tests.services.assign.service_cases import (
    A400,
    A5500,
    CLIP,
    ENRICHMENT,
    FIVE,
    FLORENCE,
    LLM,
    REFERENCE,
    YOLO,
    gpu,
    gpus,
    needing,
    on,
    service_lists,
)

CHOOSING = [strategy for strategy in Strategy if strategy is not Strategy.MANUAL]


def placed(plan: AssignmentPlan) -> dict[str, int | None]:
    return {assignment.service: assignment.gpu_index for assignment in plan.assignments}


def budgets(plan: AssignmentPlan) -> dict[str, float]:
    return {a.service: a.vram_budget_gb for a in plan.assignments if a.vram_budget_gb is not None}


def free(device: ServiceDevice) -> int:
    return device.total_bytes - device.occupied_bytes


def largest_first(services: tuple[Service, ...]) -> list[Service]:
    return sorted(services, key=lambda service: -needed_bytes(service))


def by_rule(
    strategy: Strategy, services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> dict[str, int]:
    """Where the rule of a strategy puts services, whether that fits or not."""
    memory = FreeMemory(sorted(devices, key=lambda device: device.index))
    needs = {service.name: needed_bytes(service) for service in services}
    return {name: device.index for name, device in RULES[strategy](services, needs, memory).items()}


def fits(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...], where: Mapping[str, int | None]
) -> bool:
    """Whether no GPU that holds a service is overfilled, with the budgets that services would get."""
    for device in devices:
        here = [(service, None) for service in services if where[service.name] == device.index]
        told = adjusted_budgets(device, here)
        load = sum(needed_bytes(service, told.get(service.name)) for service, _ in here)
        if load and load > free(device):
            return False
    return True


def replay(
    where: Mapping[str, int | None], services: list[Service], devices: tuple[ServiceDevice, ...]
) -> list[tuple[Service, ServiceDevice, dict[int, int]]]:
    """Tell each service in turn with its GPU and what was free on every GPU before it came."""
    left = {device.index: free(device) for device in devices}
    by_index = {device.index: device for device in devices}
    steps = []
    for service in services:
        index = where[service.name]
        assert index is not None
        steps.append((service, by_index[index], dict(left)))
        left[index] -= needed_bytes(service)
    return steps


@pytest.mark.parametrize("strategy", [Strategy.VRAM_BASED, Strategy.LATENCY_OPTIMIZED, Strategy.BALANCED])
def test_the_reference_hardware_is_not_overfilled(strategy: Strategy) -> None:
    plan = assign(strategy, FIVE, REFERENCE)
    assert placed(plan) == {
        "ai-llm": 0,
        "ai-yolo26": 0,
        "ai-florence": 0,
        "ai-clip": 1,
        "ai-enrichment": 1,
    }
    assert budgets(plan) == {"ai-enrichment": 2.3}
    assert [warning.text for warning in plan.warnings] == [
        "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Auto-adjusted to 2.3 GB."
    ]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CHOOSING), service_lists(most=6, enabled=True), gpus(most=4, healthy=True))
def test_every_strategy_prefers_what_fits_and_else_keeps_its_rule(
    strategy: Strategy, services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    names = [service.name for service in services]
    rule = by_rule(strategy, services, devices)
    ways = itertools.product([device.index for device in devices], repeat=len(services))
    possible = any(fits(services, devices, dict(zip(names, way, strict=True))) for way in ways)
    found = placed(assign(strategy, services, devices))
    if fits(services, devices, rule) or not possible:
        assert found == rule
    else:
        assert fits(services, devices, found)


@pytest.mark.parametrize("strategy", CHOOSING)
def test_many_services_that_fit_only_tightly_are_made_to_fit(strategy: Strategy) -> None:
    """More layouts than can all be compared, and no GPU has memory to spare."""
    sizes = [7, 7, 6, 6, 5, 5, 4, 4, 4, 1, 1, 1, 1, 1, 1]
    services = tuple(needing(f"s{i}", size * 1024) for i, size in enumerate(sizes))
    devices = (gpu(0, 27 * 1024), gpu(1, 27 * 1024))
    assert fits(services, devices, placed(assign(strategy, services, devices)))
    llm = needing("llm", 20 * 1024, role=ServiceRole.LLM)
    tight, more = (*services, llm), (*devices, gpu(2, 21 * 1024))
    assert fits(tight, more, placed(assign(strategy, tight, more)))


def test_a_repair_leaves_the_llm_alone_where_it_can() -> None:
    devices = [gpu(0, 24564), gpu(1, 24564), gpu(2, 12000)]
    llm = needing("llm", 20000, role=ServiceRole.LLM)
    others = [needing(f"o{i}", mib) for i, mib in enumerate((9000, 8000, 7000, 6000, 6000))]
    found = placed(assign(Strategy.ISOLATION_FIRST, [llm, *others], devices))
    assert [name for name, index in found.items() if index == found["llm"]] == ["llm"]
    assert fits((llm, *others), tuple(devices), found)


def test_latency_optimized_puts_the_critical_path_on_the_fast_card() -> None:
    plan = assign(Strategy.LATENCY_OPTIMIZED, FIVE, REFERENCE)
    assert placed(plan)["ai-llm"] == placed(plan)["ai-yolo26"] == 0


def test_isolation_first_leaves_the_llm_alone_on_the_large_card() -> None:
    plan = assign(Strategy.ISOLATION_FIRST, FIVE, REFERENCE)
    assert [name for name, index in placed(plan).items() if index == 0] == ["ai-llm"]


def test_balanced_overfills_no_card_that_need_not_be() -> None:
    plan = assign(Strategy.BALANCED, (LLM, YOLO, FLORENCE, CLIP), REFERENCE)
    assert placed(plan)["ai-llm"] == 0
    assert not plan.warnings


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(Strategy), service_lists(), gpus())
def test_every_enabled_service_is_there_once_and_no_other(
    strategy: Strategy, services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    plan = assign(strategy, services, devices)
    assert [a.service for a in plan.assignments] == [s.name for s in services if s.enabled]
    healthy = {device.index: device.id for device in devices if device.healthy}
    for assignment in plan.assignments:
        if strategy is Strategy.MANUAL or not healthy:
            assert assignment.gpu_index is assignment.device_id is None
        else:
            assert assignment.gpu_index is not None
            assert healthy[assignment.gpu_index] == assignment.device_id


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(Strategy), service_lists(), gpus(), st.randoms(use_true_random=False))
def test_the_order_in_which_gpus_are_listed_makes_no_difference(
    strategy: Strategy, services: tuple[Service, ...], devices: tuple[ServiceDevice, ...], dice: Random
) -> None:
    shuffled = list(devices)
    dice.shuffle(shuffled)
    assert assign(strategy, services, devices) == assign(strategy, services, shuffled)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(Strategy), service_lists(), gpus(), st.data())
def test_what_was_given_by_hand_stands(
    strategy: Strategy, services: tuple[Service, ...], devices: tuple[ServiceDevice, ...], data: st.DataObject
) -> None:
    given_by_hand = [
        on(service, data.draw(st.sampled_from(devices)), data.draw(st.sampled_from([None, 0.5, 2.0])))
        for service in services
        if data.draw(st.booleans())
    ]
    found = {a.service: a for a in assign(strategy, services, devices, given_by_hand).assignments}
    for wanted in given_by_hand:
        if wanted.service in found:
            kept = found[wanted.service]
            assert (kept.gpu_index, kept.device_id) == (wanted.gpu_index, wanted.device_id)
            assert wanted.vram_budget_gb in (None, kept.vram_budget_gb)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHOOSING), service_lists(), gpus())
def test_a_budget_that_was_set_leaves_the_headroom_free(
    strategy: Strategy, services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    plan = assign(strategy, services, devices)
    by_name = {service.name: service for service in services}
    for device in devices:
        here = [a for a in plan.assignments if a.device_id == device.id]
        needs = sum(needed_bytes(by_name[a.service], a.vram_budget_gb) for a in here)
        told = [a for a in here if a.vram_budget_gb is not None]
        full = [a for a in here if a.vram_budget_gb is None and by_name[a.service].budget_env is not None]
        for assignment in told:
            service, budget = by_name[assignment.service], assignment.vram_budget_gb
            assert service.budget_env is not None
            assert service.vram_bytes is not None
            assert budget is not None
            assert 0.1 <= budget <= service.vram_bytes / GIB
        if told and not any(needed_bytes(by_name[a.service]) for a in full):
            assert needs + 128 * 2**20 <= free(device)


@settings(max_examples=60, deadline=None)
@given(service_lists(enabled=True), gpus(healthy=True))
def test_vram_based_takes_the_most_free_gpu_for_the_largest_first(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    where = by_rule(Strategy.VRAM_BASED, services, devices)
    for _, device, left in replay(where, largest_first(services), devices):
        assert left[device.index] == max(left.values())
        assert device.index == min(index for index, count in left.items() if count == max(left.values()))


@settings(max_examples=60, deadline=None)
@given(service_lists(enabled=True), gpus(healthy=True))
def test_latency_optimized_takes_the_fastest_gpu_that_holds_a_critical_service(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    where = by_rule(Strategy.LATENCY_OPTIMIZED, services, devices)
    order = largest_first(tuple(s for s in services if s.latency_critical))
    rest = largest_first(tuple(s for s in services if not s.latency_critical))
    for service, device, left in replay(where, order + rest, devices):
        holding = [one for one in devices if left[one.index] >= needed_bytes(service)]
        if service.latency_critical and holding:
            assert device in holding
            assert (device.speed or device.total_bytes) == max(
                one.speed or one.total_bytes for one in holding
            )
        else:
            assert left[device.index] == max(left.values())


@settings(max_examples=60, deadline=None)
@given(service_lists(enabled=True), gpus(healthy=True))
def test_a_critical_service_that_no_gpu_holds_is_warned_of(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    plan = assign(Strategy.LATENCY_OPTIMIZED, services, devices)
    order = largest_first(tuple(s for s in services if s.latency_critical))
    for service, device, left in replay(placed(plan), order, devices):
        if needed_bytes(service) > max(left.values()):
            assert any(warning.gpu_index == device.index for warning in plan.warnings)


@settings(max_examples=60, deadline=None)
@given(service_lists(enabled=True), gpus(healthy=True))
def test_isolation_first_keeps_everything_else_off_the_llms_while_there_is_another_gpu(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    where = by_rule(Strategy.ISOLATION_FIRST, services, devices)
    llms = {s.name for s in services if s.role is ServiceRole.LLM}
    with_llm = {index for name, index in where.items() if name in llms}
    others = {index for name, index in where.items() if name not in llms}
    if with_llm != {device.index for device in devices}:
        assert not with_llm & others


@settings(max_examples=60, deadline=None)
@given(service_lists(enabled=True), gpus(healthy=True))
def test_isolation_first_gives_the_one_llm_the_largest_gpu_that_holds_it(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    llms = [s for s in services if s.role is ServiceRole.LLM]
    if len(llms) != 1:
        return
    index = by_rule(Strategy.ISOLATION_FIRST, services, devices)[llms[0].name]
    chosen = next(device for device in devices if device.index == index)
    holding = [device for device in devices if free(device) >= needed_bytes(llms[0])]
    if holding:
        assert chosen in holding
        assert chosen.total_bytes == max(device.total_bytes for device in holding)
    else:
        assert free(chosen) == max(map(free, devices))


@settings(max_examples=60, deadline=None)
@given(service_lists(most=5, enabled=True), gpus(most=4, healthy=True))
def test_balanced_agrees_with_brute_force(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...]
) -> None:
    def cost(where: tuple[int | None, ...]) -> tuple[int, float]:
        loads = [
            device.occupied_bytes
            + sum(needed_bytes(s) for s, index in zip(services, where, strict=True) if index == device.index)
            for device in devices
        ]
        totals = [device.total_bytes for device in devices]
        return overflow(loads, totals), spread([x / t for x, t in zip(loads, totals, strict=True)])

    ways = itertools.product([device.index for device in devices], repeat=len(services))
    least = min(cost(way) for way in ways)
    rule = by_rule(Strategy.BALANCED, services, devices)
    found = cost(tuple(rule[service.name] for service in services))
    assert found[0] == least[0]
    assert found[1] == pytest.approx(least[1], abs=1e-12)


def test_two_llms_get_a_gpu_each_and_the_others_the_third() -> None:
    llms = [needing("a", 20000, role=ServiceRole.LLM), needing("b", 18000, role=ServiceRole.LLM)]
    devices = [gpu(0, 24564), gpu(1, 24564), gpu(2, 8192)]
    plan = assign(Strategy.ISOLATION_FIRST, [*llms, CLIP, FLORENCE], devices)
    assert placed(plan) == {"a": 0, "b": 1, "ai-clip": 2, "ai-florence": 2}


def test_small_llms_share_a_gpu_so_that_one_is_left_for_the_others() -> None:
    llms = [needing("a", 9000, role=ServiceRole.LLM), needing("b", 8000, role=ServiceRole.LLM)]
    plan = assign(Strategy.ISOLATION_FIRST, [*llms, CLIP], [gpu(0, 24564), gpu(1, 24564)])
    assert placed(plan) == {"a": 0, "b": 0, "ai-clip": 1}


def test_large_llms_take_every_gpu_rather_than_overfill_one() -> None:
    llms = [needing("a", 20000, role=ServiceRole.LLM), needing("b", 18000, role=ServiceRole.LLM)]
    plan = assign(Strategy.ISOLATION_FIRST, [*llms, CLIP], [gpu(0, 24564), gpu(1, 24564)])
    assert placed(plan) == {"a": 0, "b": 1, "ai-clip": 1}
    assert not plan.warnings


def test_an_llm_keeps_off_a_gpu_that_was_given_to_another_service() -> None:
    devices = [gpu(0, 24564), gpu(1, 24564)]
    plan = assign(Strategy.ISOLATION_FIRST, [LLM, CLIP], devices, [on(CLIP, devices[0])])
    assert placed(plan) == {"ai-llm": 1, "ai-clip": 0}


def test_the_last_word_by_hand_counts_and_an_open_one_is_placed_with_its_budget() -> None:
    plan = assign(
        Strategy.VRAM_BASED, [ENRICHMENT], REFERENCE, [on(ENRICHMENT, A400), on(ENRICHMENT, None, 2.0)]
    )
    assert plan.assignments == (on(ENRICHMENT, A5500, 2.0),)


def test_a_renumbered_gpu_is_followed_by_its_id() -> None:
    moved = gpu(0, 4094), gpu(1, 24564)
    given_before = [on(CLIP, gpu(1, 4094))]
    plan = assign(Strategy.MANUAL, [CLIP], [moved[0], gpu(3, 24564)], given_before)
    assert plan.assignments[0].gpu_index is None
    renumbered = ServiceDevice(moved[1].id, 5, "card", 24564 * 2**20)
    plan = assign(Strategy.MANUAL, [CLIP], [moved[0], renumbered], given_before)
    assert plan.assignments == (on(CLIP, renumbered),)


def test_a_missing_gpu_leaves_the_service_unpinned_and_is_remembered() -> None:
    plan = assign(Strategy.VRAM_BASED, [CLIP], [A5500], [on(CLIP, A400)])
    (assignment,) = plan.assignments
    assert (assignment.gpu_index, assignment.device_id) == (None, A400.id)
    assert [w.kind for w in plan.warnings] == [WarningKind.GPU_MISSING]


def test_unhealthy_gpus_are_chosen_by_no_strategy_and_kept_by_hand() -> None:
    sick, well = gpu(0, 24564, healthy=False), gpu(1, 4094)
    for strategy in CHOOSING:
        assert placed(assign(strategy, [CLIP, YOLO], [sick, well])) == {"ai-clip": 1, "ai-yolo26": 1}
    plan = assign(Strategy.VRAM_BASED, [CLIP, YOLO], [sick, well], [on(CLIP, sick)])
    assert placed(plan) == {"ai-clip": 0, "ai-yolo26": 1}
    assert [w.text for w in plan.warnings] == ["GPU 0 is unhealthy. ai-clip is pinned to it."]


@pytest.mark.parametrize("strategy", CHOOSING)
def test_with_none_but_unhealthy_gpus_services_stay_unpinned(strategy: Strategy) -> None:
    sick = [gpu(0, 24564, healthy=False), gpu(1, 24564, healthy=False)]
    plan = assign(strategy, [CLIP, YOLO], sick)
    assert set(placed(plan).values()) == {None}
    assert [w.text for w in plan.warnings] == [
        "GPUs 0, 1 are unhealthy, and there is no other. Services are left unpinned."
    ]


@pytest.mark.parametrize("strategy", Strategy)
def test_no_gpus_detected_leaves_services_unpinned_with_one_warning(strategy: Strategy) -> None:
    plan = assign(strategy, FIVE, [], [on(CLIP, A400)])
    assert set(placed(plan).values()) == {None}
    assert [w.text for w in plan.warnings] == ["No GPUs detected. Services are left unpinned."]


@pytest.mark.parametrize("strategy", CHOOSING)
def test_a_service_of_unknown_need_is_placed_and_takes_no_room(strategy: Strategy) -> None:
    plan = assign(strategy, [needing("unknown", None), needing("known", 20000)], REFERENCE)
    assert placed(plan)["known"] == 0
    assert placed(plan)["unknown"] is not None
    assert not plan.warnings


@pytest.mark.parametrize("strategy", Strategy)
def test_sixty_four_services_on_eight_gpus_are_all_placed(strategy: Strategy) -> None:
    services = [needing(f"s{i}", 100 + 37 * (i * 29 % 64)) for i in range(64)]
    devices = [gpu(i, 24564 if i % 2 else 12288, 100 * i) for i in range(8)]
    plan = assign(strategy, services, devices)
    assert len(plan.assignments) == 64
    if strategy is not Strategy.MANUAL:
        assert set(placed(plan).values()) == set(range(8))
        assert not plan.warnings
