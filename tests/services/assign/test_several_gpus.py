"""Services on several GPUs: by name, all, and a number of them."""

from dataclasses import replace

import pytest

from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import BadAssignment
from cotenant.services.assign.changes import same
from cotenant.services.assign.checks import resolved
from cotenant.services.assign.fallback import fall_back
from cotenant.services.assign.strategies import assign
from cotenant.services.model import (
    Assignment,
    AssignmentPlan,
    GpuCount,
    GpuRef,
    SavedConfiguration,
    Service,
    Strategy,
)
from tests.services.assign.service_cases import gpu, needing

FOUR = (gpu(0, 24564), gpu(1, 4094), gpu(2, 24564, 3000), gpu(3, 12288))
OLLAMA = needing("ollama", 12000)
HUB = needing("hub", 16384, budget_env="BUDGET")
CLIP = needing("clip", 1229)


def on(service: Service, *indices: int, count: int | str | None = None) -> Assignment:
    asked = Assignment(service.name, count=count).on(GpuRef(index) for index in indices)
    (found,) = resolved([asked], (OLLAMA, HUB, CLIP), FOUR, None)
    return found


def where(plan: AssignmentPlan, service: Service) -> tuple[int, ...]:
    return next(each.indices for each in plan.assignments if each.service == service.name)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_named_gpus_are_kept_and_each_bears_its_part(strategy: Strategy) -> None:
    plan = assign(strategy, (OLLAMA, CLIP), FOUR, [on(OLLAMA, 3, 1)])
    assert where(plan, OLLAMA) == (1, 3)
    # 6,000 MiB are too much for GPU 1 and not for GPU 3; clip is placed around them.
    assert [each.text for each in plan.warnings] == [
        "ollama VRAM (5.9 GB on each of 2 GPUs) exceeds GPU 1 (4 GB)"
    ]
    assert where(plan, CLIP) == (() if strategy is Strategy.MANUAL else (where(plan, CLIP)[0],))
    assert where(plan, CLIP) != (1,)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_number_of_gpus_gives_those_with_the_most_free_memory(strategy: Strategy) -> None:
    plan = assign(strategy, (CLIP, OLLAMA), FOUR, [on(OLLAMA, count=2)])
    assert where(plan, OLLAMA) == (0, 2)
    assert plan.warnings == ()
    (kept,) = [each for each in plan.assignments if each.service == "ollama"]
    assert (kept.count, kept.by_hand) == (2, True)


def test_a_number_keeps_the_gpus_that_were_chosen_before() -> None:
    plan = assign(Strategy.MANUAL, (OLLAMA,), FOUR, [on(OLLAMA, count=2)])
    saved = SavedConfiguration(1, 0.0, Strategy.MANUAL, plan.assignments)
    fuller = (replace(FOUR[0], occupied_bytes=FOUR[0].total_bytes), *FOUR[1:])
    again = resolved([Assignment("ollama", count=2)], (OLLAMA,), fuller, saved)
    assert where(assign(Strategy.MANUAL, (OLLAMA,), fuller, again), OLLAMA) == (0, 2)
    three = resolved([Assignment("ollama", count=3)], (OLLAMA,), fuller, saved)
    assert where(assign(Strategy.MANUAL, (OLLAMA,), fuller, three), OLLAMA) == (1, 2, 3)


def test_all_are_those_of_now() -> None:
    given = [on(OLLAMA, count="all")]
    plan = assign(Strategy.BALANCED, (OLLAMA,), FOUR[:2], given)
    assert where(plan, OLLAMA) == (0, 1)
    assert where(assign(Strategy.BALANCED, (OLLAMA,), FOUR, plan.assignments), OLLAMA) == (0, 1, 2, 3)
    (effective,), warnings = fall_back(plan.assignments, (OLLAMA,), FOUR[:1])
    assert (effective.indices, warnings) == ((0,), [])


def test_more_gpus_than_there_are_are_warned_of() -> None:
    plan = assign(Strategy.VRAM_BASED, (OLLAMA,), FOUR, [on(OLLAMA, count=5)])
    assert where(plan, OLLAMA) == (0, 1, 2, 3)
    assert [each.text for each in plan.warnings] == ["ollama asks for 5 GPUs and gets 4."]
    assert where(assign(Strategy.VRAM_BASED, (OLLAMA,), (), [on(OLLAMA, count=5)]), OLLAMA) == ()


def test_the_gpu_with_least_room_sets_the_budget_of_all() -> None:
    """8 GiB on each; GPU 1 has 4,094 MiB less 128: 3.8 GB, twice."""
    plan = assign(Strategy.MANUAL, (HUB,), FOUR, [on(HUB, 0, 1)])
    assert [each.vram_budget_gb for each in plan.assignments] == [7.6]
    assert [each.text for each in plan.warnings] == [
        "hub VRAM budget (8 GB on each of 2 GPUs) exceeds GPU 1 (4 GB). Auto-adjusted to 7.6 GB."
    ]


def test_a_missing_one_of_several_is_replaced_or_done_without() -> None:
    (kept,) = assign(Strategy.MANUAL, (OLLAMA,), FOUR, [on(OLLAMA, 1, 3)]).assignments
    (moved,), warnings = fall_back([kept], (OLLAMA,), FOUR[:3])
    assert {*moved.indices} == {0, 1}
    assert [each.text for each in warnings] == ["GPU 3 is missing. ollama falls back to GPU 0."]
    (less,), warnings = fall_back([kept], (OLLAMA,), FOUR[1:2])
    assert less.indices == (1,)
    assert [each.text for each in warnings] == ["GPU 3 is missing. ollama uses the others of its GPUs."]
    (_,), warnings = fall_back([kept], (OLLAMA,), ())
    assert len(warnings) == 2


def test_what_differs_is_which_gpus_and_not_their_order_or_how_they_were_asked_for() -> None:
    two, turned, one = on(OLLAMA, 0, 1), on(OLLAMA, 1, 0), on(OLLAMA, 0)
    assert same(two, turned)
    assert same(two, replace(two, count="all"))
    assert not same(two, one)
    assert not same(two, on(OLLAMA, 0, 2))
    by_index = Assignment("ollama", 1, more=(GpuRef(0),))
    assert same(two, by_index)


@pytest.mark.parametrize(
    ("indices", "field"), [((0, 9), "more_gpus"), ((9, 0), "gpu_index"), ((1, 1), "more_gpus")]
)
def test_what_cannot_be_names_its_field(indices: tuple[int, ...], field: str) -> None:
    with pytest.raises(BadAssignment) as refused:
        on(OLLAMA, *indices)
    assert refused.value.field == f"assignments[0].{field}"


def test_a_gpu_that_is_gone_keeps_its_place_among_several() -> None:
    gone = Assignment("ollama", 0, FOUR[0].id, more=(GpuRef(None, DeviceId("GPU-gone")),))
    (kept,) = assign(Strategy.VRAM_BASED, (OLLAMA,), FOUR, [gone]).assignments
    assert kept.gpus == (GpuRef(0, FOUR[0].id), GpuRef(None, DeviceId("GPU-gone")))


@pytest.mark.parametrize("strategy", [each for each in Strategy if each is not Strategy.MANUAL])
@pytest.mark.parametrize(("count", "expected"), [(2, (0, 2)), ("all", (0, 1, 2, 3)), (1, None), (None, None)])
def test_a_strategy_gives_a_service_the_number_it_is_configured_for(
    strategy: Strategy, count: GpuCount | None, expected: tuple[int, ...] | None
) -> None:
    ollama = replace(OLLAMA, gpu_count=count)
    plan = assign(strategy, (CLIP, ollama), FOUR)
    assert where(plan, ollama) == (expected or (where(plan, ollama)[0],))
    (found,) = [each for each in plan.assignments if each.service == "ollama"]
    assert not found.by_hand
    # What an operator chooses overrides it, and so does nothing under manual.
    assert where(assign(strategy, (ollama,), FOUR, [on(OLLAMA, 3)]), ollama) == (3,)
    assert where(assign(Strategy.MANUAL, (ollama,), FOUR), ollama) == ()
