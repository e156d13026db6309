from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.fragmentation import SizedModel
from cotenant.domain.models import Recipe
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.units import GIB, MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.fragmentation import DeviceRoom, FreeMemory, LoadableModel, measure
from cotenant.planning.needs import Needs
from cotenant.planning.planner import PlanRequest, place
from cotenant.planning.single_device import place_without_memory
from tests.scheduling.harness import fit_over, fit_whole
from tests.support.models.shapes import dense, gpu

RULES = BudgetRules(overhead_bytes=20 * MIB)


def room(index: int, free_gib: float, whole_gib: float = 24) -> DeviceRoom:
    budget = gpu(index, int(free_gib * GIB))
    return DeviceRoom(budget, budget.budget_bytes, int(whole_gib * GIB))


def whole(name: str, gib: float, demand: float = 0.0) -> LoadableModel:
    return LoadableModel(name, fit_whole(int(gib * GIB)), demand=demand)


def of(models: Sequence[LoadableModel], *rooms: DeviceRoom):
    return measure(FreeMemory(tuple(models), rooms), Needs())


def test_the_example_of_twenty_gigabytes_that_are_ten_on_each_of_two_cards():
    found = of([whole("small", 5), whole("llama-70b", 18)], room(0, 10), room(1, 10))
    assert found.ratio == pytest.approx(0.5), "of two models as likely, one can use nothing of it"
    assert found.stranded_bytes == 0, "the small one can use all of it"
    assert (found.largest, found.largest_in_one_piece) == (
        SizedModel("small", 5 * GIB),
        SizedModel("llama-70b", 18 * GIB),
    )


def test_memory_that_no_model_can_use_is_stranded_on_its_card():
    found = of([whole("a", 5), whole("b", 8)], room(0, 9), room(1, 4))
    assert (found.by_device["GPU-0"].stranded_bytes, found.by_device["GPU-1"].stranded_bytes) == (0, 4 * GIB)
    assert found.stranded_bytes == 4 * GIB
    assert found.ratio == pytest.approx(4 / 13)


def test_models_weigh_as_they_are_requested_but_none_less_than_one_of_all():
    rooms = room(0, 10), room(1, 10)
    models = [whole("small", 5, demand=3.0), whole("large", 18, demand=1.0)]
    # Shares 3/4 and 1/4, of which the second is raised to 1/2: of a sum of 5/4.
    assert of(models, *rooms).ratio == pytest.approx(0.4)


def test_a_split_model_can_use_the_devices_that_it_is_split_over():
    split = LoadableModel("split", fit_over([6 * GIB, 6 * GIB]))
    found = of([split], room(0, 7), room(1, 7), room(2, 3))
    assert [found.by_device[f"GPU-{i}"].ratio for i in range(3)] == [0, 0, 1]
    assert found.largest == SizedModel("split", 12 * GIB)


def test_what_takes_no_memory_or_never_fits_does_not_count():
    models = [
        LoadableModel("remote", lambda budgets: place_without_memory("remote", Recipe())),
        whole("huge", 100),
    ]
    found = of(models, room(0, 10))
    assert (found.ratio, found.stranded_bytes, found.largest_in_one_piece) == (0, 0, None)


def test_one_piece_is_no_larger_than_a_card_that_only_our_models_use():
    thrice = room(0, 10), room(1, 10), room(2, 10)
    found = of([whole("a", 24), whole("b", 25)], *thrice)
    assert found.largest_in_one_piece == SizedModel("a", 24 * GIB)


def test_free_memory_of_a_card_that_admits_no_further_engine_is_stranded():
    full = room(0, 0)
    full = DeviceRoom(replace(full.budget, left_out="it admits one engine"), 20 * GIB, 24 * GIB)
    found = of([whole("a", 5)], full, room(1, 6))
    assert (found.by_device["GPU-0"].stranded_bytes, found.ratio) == (20 * GIB, pytest.approx(20 / 26))


def test_host_ram_can_be_what_a_model_lacks():
    def offloads(budgets: Sequence[Budget]) -> Placement | Refusal:
        placed = fit_whole(5 * GIB)(budgets)
        assert isinstance(placed, Placement)
        return replace(placed, host=replace(placed.host, kv=3 * GIB))

    model, host = LoadableModel("a", offloads), gpu(9, 2 * GIB)
    assert measure(FreeMemory((model,), (room(0, 10),), host), Needs()).largest is None
    roomy = replace(host, budget_bytes=3 * GIB)
    assert measure(FreeMemory((model,), (room(0, 10),), roomy), Needs()).largest is not None


def test_a_model_is_planned_once_for_each_device_until_its_fit_is_another():
    calls = []

    def counted(budgets: Sequence[Budget]) -> Placement | Refusal:
        calls.append(budgets)
        return fit_whole(5 * GIB)(budgets)

    needs, model = Needs(), LoadableModel("a", counted)
    for free in (6, 7, 8):
        measure(FreeMemory((model,), (room(0, free), room(1, free))), needs)
    assert len(calls) == 2
    needs.keep_only(set())
    measure(FreeMemory((model,), (room(0, 6), room(1, 6))), needs)
    assert len(calls) == 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 8), st.integers(20, 900)), min_size=1, max_size=5),
    st.lists(st.integers(0, 4000), min_size=1, max_size=4),
)
def test_what_is_usable_is_what_the_planner_would_use(models, budgets_mib):
    """Needs are planned once and compared: the planner must come to the same for every budget."""
    # Every model would fit if no other were loaded.
    rooms = [DeviceRoom(gpu(i, mib * MIB), mib * MIB, 100 * GIB) for i, mib in enumerate(budgets_mib)]
    for layers, mib in models:
        request = PlanRequest("m", dense(layers, mib * MIB), Recipe())

        def fit(budgets: Sequence[Budget], request: PlanRequest = request) -> Placement | Refusal:
            return place(request, budgets, RULES)

        found = of([LoadableModel("m", fit)], *rooms)
        alone = [isinstance(fit([each.budget]), Placement) for each in rooms]
        split = fit([each.budget for each in rooms])
        used = {s.device.id for s in split.used_shares} if isinstance(split, Placement) else set()
        for each, fits_alone in zip(rooms, alone, strict=True):
            usable = fits_alone if any(alone) else each.budget.device.id in used
            assert found.by_device[each.budget.device.id].ratio == (0 if usable else 1)
