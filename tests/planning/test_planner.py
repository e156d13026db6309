from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.devices import (
    HOST_ID,
    ComputeMode,
    Device,
    DeviceId,
    DeviceKind,
    DeviceOrder,
    GpuProcess,
    Inventory,
    Reading,
)
from cotenant.domain.errors import BadSplit
from cotenant.domain.models import MOST_LAYERS, CacheType, Recipe, SplitMode, SplitPolicy
from cotenant.domain.placements import MAX_DEVICES, Budget, Placement, Refusal
from cotenant.domain.units import GIB, MIB
from cotenant.domain.vendors import InventorySource
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.planning.planner import PlanRequest, place
from tests.support.models.shapes import dense, gpu, recipes, shapes

RULES = BudgetRules(overhead_bytes=20 * MIB)


def inventory(*cards: tuple[int | None, dict[str, object]]) -> Inventory:
    devices, readings = [], {}
    for index, (free, facts) in enumerate(cards):
        device = Device(DeviceId(f"GPU-{index}"), DeviceKind.GPU, "card", index=index, total_bytes=24 * GIB)
        devices.append(device)
        readings[device.id] = Reading(device.id, 0.0, free_bytes=free, **facts)  # type: ignore[arg-type]
    return Inventory(InventorySource.NVML, tuple(devices), readings)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    shapes(),
    recipes(),
    st.lists(st.integers(0, 500), min_size=1, max_size=4),
    st.sampled_from([*SplitPolicy]),
    st.sampled_from(["all", MOST_LAYERS, 0, 1, 3, 99]),
    st.sampled_from([SplitMode.LAYER, SplitMode.NONE]),
)
def test_a_plan_never_exceeds_a_budget_and_places_every_layer_once(
    shape, recipe, budget_mib, policy, n_gpu_layers, split_mode
) -> None:
    recipe = replace(recipe, split_policy=policy, n_gpu_layers=n_gpu_layers, split_mode=split_mode)
    cards = [gpu(i, mib * MIB, bandwidth=100 + i) for i, mib in enumerate(budget_mib)]
    result = place(PlanRequest("m", shape, recipe), cards, RULES)
    if isinstance(result, Refusal):
        assert result.reason
        return
    for share in result.shares:
        assert share.parts.total <= share.budget.budget_bytes or not share.used
    assert sum(result.tensor_split) == result.n_gpu_layers
    blocks = [
        block for s in result.used_shares if s.first is not None for block in range(s.first, s.last + 1)
    ]
    on_gpus = max(0, result.n_gpu_layers - 1)
    assert blocks == list(range(shape.n_layers - on_gpus, shape.n_layers))
    if result.n_gpu_layers:
        assert [share.has_output for share in result.used_shares] == [False] * (
            len(result.used_shares) - 1
        ) + [True]
    if split_mode is SplitMode.NONE:
        assert len(result.used_shares) <= 1


@settings(max_examples=100, deadline=None)
@given(shapes(), st.lists(st.integers(0, 300), min_size=1, max_size=3))
def test_auto_offloads_the_most_layers_that_fit(shape, budget_mib) -> None:
    cards = [gpu(i, mib * MIB) for i, mib in enumerate(budget_mib)]

    def placed(n: int | str) -> Placement | None:
        result = place(PlanRequest("m", shape, Recipe(n_gpu_layers=n)), cards, RULES)
        return result if isinstance(result, Placement) else None

    found = placed(MOST_LAYERS)
    possible = [n for n in range(1, shape.n_layers + 2) if placed(n)]
    assert (found.n_gpu_layers if found else 0) == max(possible, default=0)


def test_a_refusal_names_the_shortfall_per_device_and_only_remedies_that_fit() -> None:
    shape = dense(32, 200 * MIB, n_embd=4096, n_ff=14336, kv=1024)
    request = PlanRequest("m", shape, Recipe(n_ctx=131072))
    cards = [gpu(0, 8 * GIB), gpu(1, 6 * GIB)]
    result = plan(request, cards, RULES)
    assert isinstance(result, Refusal)
    assert sum(shortfall.missing_bytes for shortfall in result.shortfalls) > 0
    assert {shortfall.device.id for shortfall in result.shortfalls} == {"GPU-0", "GPU-1"}
    flags = {remedy.flags.split()[0]: remedy.flags.split() for remedy in result.remedies if remedy.flags}
    n_ctx = int(flags["--n-ctx"][1])
    assert isinstance(place(replace(request, recipe=Recipe(n_ctx=n_ctx)), cards, RULES), Placement)
    assert isinstance(place(replace(request, recipe=Recipe(n_ctx=n_ctx + 256)), cards, RULES), Refusal)
    kind = CacheType(flags["--cache-type-k"][1])
    quantised = Recipe(n_ctx=131072, cache_type_k=kind, cache_type_v=kind)
    assert isinstance(place(replace(request, recipe=quantised), cards, RULES), Placement)
    layers = int(flags["--n-gpu-layers"][1])
    fewer = Recipe(n_ctx=131072, n_gpu_layers=layers)
    assert isinstance(place(replace(request, recipe=fewer), cards, RULES), Placement)
    more = Recipe(n_ctx=131072, n_gpu_layers=layers + 1)
    assert isinstance(place(replace(request, recipe=more), cards, RULES), Refusal)
    assert any("one more GPU" in remedy.text for remedy in result.remedies)


def test_a_model_larger_than_everything_is_told_how_large_a_gpu_would_do() -> None:
    shape = dense(40, GIB)
    result = plan(PlanRequest("m", shape, Recipe()), [gpu(0, 4 * GIB)], RULES)
    assert isinstance(result, Refusal)
    assert any("one more GPU with" in remedy.text for remedy in result.remedies)
    assert "needs" in result.reason


def test_the_largest_quantisation_that_would_fit_is_named() -> None:
    shape = replace(dense(40, GIB), parameters=round(40 * GIB * 8 / 8.5))
    result = plan(PlanRequest("m", shape, Recipe()), [gpu(0, 24 * GIB)], RULES)
    assert isinstance(result, Refusal)
    assert any("Q4_K_M, about 23" in remedy.text for remedy in result.remedies)


def test_devices_that_cannot_be_trusted_are_left_out_and_named() -> None:
    found = inventory(
        (None, {"problem": "the card is lost"}),
        (20 * GIB, {"compute_mode": ComputeMode.PROHIBITED}),
        (
            20 * GIB,
            {"compute_mode": ComputeMode.EXCLUSIVE_PROCESS, "processes": (GpuProcess(42, "x", None),)},
        ),
        (1500 * MIB, {}),
        (10 * GIB, {}),
    )
    result = place(PlanRequest("m", dense(4, 100 * MIB), Recipe()), budgets(found, BudgetRules()), RULES)
    assert isinstance(result, Placement)
    assert [share.device.id for share in result.used_shares] == ["GPU-4"]
    told = " ".join(result.warnings)
    for reason in ("the card is lost", "Prohibited", "process 42 (x) holds it", "under the minimum"):
        assert reason in told


def test_budgets_follow_the_order_asked_for() -> None:
    found = inventory((4 * GIB, {}), (20 * GIB, {}), (None, {}), (10 * GIB, {}))
    by_free = budgets(found, BudgetRules())
    assert [budget.device.index for budget in by_free] == [1, 3, 0, 2]
    assert by_free[0].budget_bytes == 19 * GIB
    by_index = budgets(found, BudgetRules(order=DeviceOrder.INDEX))
    assert [budget.device.index for budget in by_index] == [0, 1, 2, 3]


def test_host_ram_bears_the_model_where_there_is_no_gpu() -> None:
    host = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=16 * GIB)
    shape = dense(4, 100 * MIB)
    result = place(PlanRequest("m", shape, Recipe()), [Budget(host, 16 * GIB, 15 * GIB)], RULES)
    assert isinstance(result, Placement)
    assert (result.n_gpu_layers, result.tensor_split, result.on_gpu) == (0, (0,), False)
    assert (result.shares[0].first, result.shares[0].last) == (0, 3)
    assert result.shares[0].parts.weights == shape.tensor_bytes
    small = plan(PlanRequest("m", shape, Recipe()), [Budget(host, 300 * MIB, 300 * MIB)], RULES)
    assert isinstance(small, Refusal)
    assert "host RAM" in small.reason


def test_no_layer_on_a_gpu_hides_the_gpus() -> None:
    result = place(PlanRequest("m", dense(4, 100 * MIB), Recipe(n_gpu_layers=0)), [gpu(0, GIB)], RULES)
    assert isinstance(result, Placement)
    assert result.used_shares == ()
    assert result.host.weights > 400 * MIB


def test_a_split_by_hand_is_checked_against_the_budgets() -> None:
    shape = dense(10, 100 * MIB)
    cards = [gpu(0, 800 * MIB), gpu(1, 800 * MIB)]

    def by_hand(*values: float) -> Placement | Refusal:
        return plan(PlanRequest("m", shape, Recipe(tensor_split=values)), cards, RULES)

    good = by_hand(6, 5)
    assert isinstance(good, Placement)
    assert good.tensor_split == (6, 5)
    bad = by_hand(9, 2)
    assert isinstance(bad, Refusal)
    assert "overfills GPU 0" in bad.reason
    assert any("leave --tensor-split out" in remedy.text for remedy in bad.remedies)
    with pytest.raises(BadSplit):
        by_hand(1, 2, 8)


def test_speed_without_known_bandwidth_says_what_it_did_instead() -> None:
    cards = [gpu(0, 800 * MIB), gpu(1, 800 * MIB, bandwidth=900)]
    recipe = Recipe(split_policy=SplitPolicy.SPEED)
    result = place(PlanRequest("m", dense(10, 100 * MIB), recipe), cards, RULES)
    assert isinstance(result, Placement)
    assert any("bandwidth of GPU 0" in warning for warning in result.warnings)


def test_a_model_is_never_split_over_mig_slices() -> None:
    slices = [
        replace(b, device=replace(b.device, kind=DeviceKind.MIG)) for b in (gpu(0, GIB), gpu(1, 2 * GIB))
    ]

    def on_slices(n_layers: int) -> Placement | Refusal:
        return place(PlanRequest("m", dense(n_layers, 100 * MIB), Recipe()), slices, RULES)

    fitting = on_slices(15)
    assert isinstance(fitting, Placement)
    assert [share.device.id for share in fitting.used_shares] == ["GPU-1"]
    assert isinstance(on_slices(25), Refusal)


def test_sixteen_gpus_and_a_hundred_layers_are_split_by_every_policy() -> None:
    cards = [gpu(i, (700 + 13 * i) * MIB, bandwidth=400 + i) for i in range(16)]
    for policy in SplitPolicy:
        recipe = Recipe(split_policy=policy)
        result = place(PlanRequest("m", dense(127, 75 * MIB), recipe), cards, RULES)
        assert isinstance(result, Placement)
        assert sum(result.tensor_split) == 128
        assert len(result.used_shares) <= MAX_DEVICES
