"""Experts in host RAM: how many blocks, what that frees, what it holds, and what it is said to cost."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.analysis.footprint import Costs
from cotenant.domain.devices import HOST_ID, Device, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.models import FEWEST_EXPERTS, MOST_LAYERS, ModelShape, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.units import GIB, MIB
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.describe import plan_as_json
from cotenant.planning.host_memory import held_bytes, on_host, placement_bytes
from cotenant.planning.planner import PlanRequest, leave_to_engine, place
from cotenant.planning.speed import HOST_BYTES_PER_S, most_tokens_per_s
from tests.support.models.shapes import dense, gpu

RULES = BudgetRules(overhead_bytes=20 * MIB)
AUTO = Recipe(n_cpu_moe=FEWEST_EXPERTS)
RAM = Device(HOST_ID, DeviceKind.HOST, "host RAM")


def mixture(n_layers: int = 10, *, leading: int = 0, n_expert: int = 8) -> ModelShape:
    """Layers of 1 GiB, seven eighths of it experts, except for the leading ones, which are dense."""
    shape = dense(n_layers, GIB, n_embd=256, kv=256)
    layers = tuple(
        replace(layer, expert_bytes=896 * MIB, largest_tensor_bytes=300 * MIB, n_ff=0)
        if layer.index >= leading
        else layer
        for layer in shape.layers
    )
    return replace(shape, layers=layers, n_expert=n_expert, n_expert_used=2, n_ff_expert=64)


def placed(shape: ModelShape, recipe: Recipe, *budgets: Budget) -> Placement | Refusal:
    return place(PlanRequest("m", shape, recipe), budgets, RULES)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 3),
    st.lists(st.integers(200, 9000), min_size=1, max_size=3),
    st.sampled_from(["all", MOST_LAYERS, 5]),
)
def test_auto_is_the_fewest_blocks_with_which_it_fits(
    n_layers: int, leading: int, cards: list[int], layers: int | str
) -> None:
    shape = mixture(n_layers, leading=min(leading, n_layers - 1))
    budgets = [gpu(index, size * MIB) for index, size in enumerate(cards)]
    recipe = replace(AUTO, n_gpu_layers=layers)
    found = placed(shape, recipe, *budgets)
    fixed = replace(recipe, n_gpu_layers="all" if layers == MOST_LAYERS else layers)
    fitting = [
        n
        for n in range(n_layers + 1)
        if isinstance(placed(shape, replace(fixed, n_cpu_moe=n), *budgets), Placement)
    ]
    if fitting:
        assert isinstance(found, Placement)
        assert found.recipe.n_cpu_moe == fitting[0]
        assert fitting == list(range(fitting[0], n_layers + 1))
    elif layers != MOST_LAYERS:
        assert isinstance(found, Refusal)
        assert f"with the experts of {n_layers} blocks in host RAM" in found.reason
    elif isinstance(found, Placement):
        # All experts, and blocks as well.
        assert found.recipe.n_cpu_moe == n_layers
        assert found.n_gpu_layers <= n_layers


def test_what_experts_free_on_the_gpu_is_in_host_ram() -> None:
    shape, card = mixture(), gpu(0, 20 * GIB)
    whole, some = placed(shape, Recipe(), card), placed(shape, Recipe(n_cpu_moe=3), card)
    assert isinstance(whole, Placement)
    assert isinstance(some, Placement)
    moved = 3 * 896 * MIB
    assert whole.shares[0].parts.weights - some.shares[0].parts.weights == moved
    assert some.host.weights - whole.host.weights == moved
    assert some.shares[0].parts.kv == whole.shares[0].parts.kv
    assert some.n_gpu_layers == whole.n_gpu_layers == 11


def test_no_inputs_are_copied_for_pipelines_as_the_engine_has_none_then() -> None:
    shape, recipe = mixture(), Recipe(n_ctx=32768)
    copied, once = Costs(shape, recipe), Costs(shape, replace(recipe, n_cpu_moe=1))
    assert once.parts(5, 8, many=True).compute < copied.parts(5, 8, many=True).compute
    assert once.host(many=True).compute < copied.host(many=True).compute


def test_a_model_without_experts_has_none_to_move() -> None:
    shape, card = dense(4, GIB), gpu(0, 20 * GIB)
    plain, told = placed(shape, Recipe(), card), placed(shape, Recipe(n_cpu_moe=2), card)
    assert isinstance(told, Placement)
    assert (told.recipe.n_cpu_moe, told.shares) == (0, plain.shares if isinstance(plain, Placement) else ())
    assert told.warnings == ("n_cpu_moe has no effect: the model is no mixture of experts",)
    automatic = placed(shape, AUTO, card)
    assert isinstance(automatic, Placement)
    assert automatic.warnings == ()


def test_the_engine_that_fits_itself_is_told_no_number() -> None:
    found = leave_to_engine(PlanRequest("m", mixture(), AUTO), [gpu(0, 20 * GIB)], RULES)
    assert isinstance(found, Placement)
    assert found.recipe.n_cpu_moe == 0


@pytest.mark.parametrize("kind", [EngineKind.VLLM, EngineKind.COMMAND, EngineKind.REMOTE])
def test_engines_that_keep_no_experts_in_host_ram_have_none_planned_there(kind: EngineKind) -> None:
    request = PlanRequest("m", mixture(), replace(AUTO, engine=kind), stated_bytes=GIB)
    found = plan(request, [gpu(0, 40 * GIB)], RULES, host(64 * GIB))
    assert isinstance(found, Placement)
    assert (found.recipe.n_cpu_moe, found.recipe.mmap) == (0, True)
    assert plan_as_json(found, [gpu(0, 40 * GIB)], 10)["n_cpu_moe"] == 0


def test_of_several_machines_it_goes_where_the_fewest_experts_stay_in_host_ram() -> None:
    small, large = gpu(0, 6 * GIB), gpu(1, 8 * GIB)
    there = replace(large, device=replace(large.device, node="b"))
    found = placed(mixture(), AUTO, small, there)
    alone = placed(mixture(), AUTO, there)
    assert isinstance(found, Placement)
    assert isinstance(alone, Placement)
    assert [share.device.id for share in found.used_shares] == [there.device.id]
    assert found.recipe.n_cpu_moe == alone.recipe.n_cpu_moe


def host(size: int) -> Budget:
    return Budget(RAM, size, size)


def test_experts_are_held_in_host_ram_where_there_is_room_and_claimed() -> None:
    request, cards = PlanRequest("m", mixture(), AUTO), [gpu(0, 8 * GIB)]
    found = plan(request, cards, RULES, host(16 * GIB))
    assert isinstance(found, Placement)
    moved = int(found.recipe.n_cpu_moe) * 896 * MIB
    assert moved > GIB
    assert not found.recipe.mmap
    assert placement_bytes(found)[HOST_ID] == found.host.total > moved
    without_room = plan(request, cards, RULES, host(2 * GIB))
    assert isinstance(without_room, Placement)
    assert held_bytes(without_room) < GIB
    assert "of mapped weights are read from the disk again for every token" in without_room.warnings[-1]
    for held in ({"mmap": False}, {"mlock": True}):
        refused = plan(replace(request, recipe=replace(AUTO, **held)), cards, RULES, host(2 * GIB))  # type: ignore[arg-type]
        assert isinstance(refused, Refusal)
        assert "of host RAM and 2.0 GiB may be used" in refused.reason


@pytest.mark.parametrize("mmap", [True, False])
def test_on_a_gpu_that_shares_host_ram_experts_take_as_much_of_the_pool_in_either_place(mmap: bool) -> None:
    card = gpu(0, 12 * GIB)
    pool = replace(card, device=replace(card.device, unified=True))
    whole = placed(mixture(), Recipe(mmap=mmap), pool)
    some = on_host(placed(mixture(), Recipe(n_cpu_moe=5, mmap=mmap), pool), pool)
    assert isinstance(whole, Placement)
    assert isinstance(some, Placement)
    taken, before = placement_bytes(some), placement_bytes(whole)
    assert taken.keys() == before.keys()
    assert 0 <= taken[pool.device.id] - before[pool.device.id] < 400 * MIB
    assert some.recipe.mmap is mmap
    small = replace(pool, budget_bytes=8 * GIB)
    refused = plan(PlanRequest("m", mixture(), Recipe(mmap=mmap)), [small], RULES, small)
    assert isinstance(refused, Refusal)
    assert not any("--n-cpu-moe" in each.flags for each in refused.remedies)
    assert isinstance(placed(mixture(), AUTO, small), Refusal)


def test_a_refusal_says_how_many_experts_would_have_to_stay_and_how_fast_it_is_then() -> None:
    shape, cards = mixture(), [gpu(0, 8 * GIB, bandwidth=500 * 10**9)]
    refused = plan(PlanRequest("m", shape, Recipe()), cards, RULES, host(16 * GIB))
    assert isinstance(refused, Refusal)
    (remedy,) = (each for each in refused.remedies if "--n-cpu-moe" in each.flags)
    blocks = int(remedy.flags.split()[1])
    found = placed(shape, Recipe(n_cpu_moe=blocks), *cards)
    assert isinstance(found, Placement)
    assert isinstance(placed(shape, Recipe(n_cpu_moe=blocks - 1), *cards), Refusal)
    # Of eight experts, two are read for a token: of each block in host RAM a quarter of the 896 MiB.
    on_host = blocks * 224 * MIB
    on_card = (10 * (128 + 224) + 10) * MIB - on_host
    seconds = on_host / HOST_BYTES_PER_S + on_card / 500e9
    assert most_tokens_per_s(shape, found) == pytest.approx(1 / seconds, rel=0.01)
    assert re.search(
        rf"experts of {blocks} layers in host RAM, .* GiB; at most about {1 / seconds:.0f} tokens/s",
        remedy.text,
    )
    assert "if that gives 51 GB/s" in remedy.text
    lacking = plan(PlanRequest("m", shape, Recipe()), cards, RULES, host(GIB))
    assert isinstance(lacking, Refusal)
    assert not any("--n-cpu-moe" in each.flags for each in lacking.remedies)
