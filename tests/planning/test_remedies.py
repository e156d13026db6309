"""What a refusal proposes, done as it is printed: the model then fits."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.clock import ManualClock
from cotenant.domain.devices import DeviceOrder
from cotenant.domain.errors import BadRecipe, BadSplit
from cotenant.domain.exit_causes import Lacking
from cotenant.domain.models import MOST_LAYERS, CacheType, Recipe, SplitMode, SplitPolicy, check_recipe
from cotenant.domain.placements import Placement, Refusal, Remedy
from cotenant.domain.units import GIB, MIB
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.planning.advice import after_failed_load, plan
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.planning.planner import PlanRequest, place
from tests.support.models.shapes import dense, gpu

RULES = BudgetRules(overhead_bytes=20 * MIB)
SIZES = st.sampled_from(["900MiB", "1500MiB", "3GiB", "4.3GiB", "8GiB", "24GiB"])
RECIPES = st.builds(
    Recipe,
    n_ctx=st.sampled_from([512, 4096, 32768, 262144]),
    parallel=st.sampled_from([1, 4]),
    kv_unified=st.booleans(),
    n_gpu_layers=st.sampled_from(["all", MOST_LAYERS, 3]),
    split_policy=st.sampled_from([SplitPolicy.FILL, SplitPolicy.BALANCE]),
    split_mode=st.sampled_from([*SplitMode]),
    smart_split=st.booleans(),
    tensor_split=st.sampled_from([(), (), (1.0,), (0.5, 0.5), (0.3, 0.3, 0.4)]),
)


def budgets_on(spec: str, rules: BudgetRules):
    return budgets(DescribedProbe(ManualClock(), spec).inventory(), rules)


def carried_out(remedy: Remedy, recipe: Recipe, rules: BudgetRules, spec: str):
    """Do what a remedy's words and flags say; None if its number is about another file."""
    if "smaller quantisation" in remedy.text:
        return None
    if "--tensor-split" in remedy.text or "--no-smart-split" in remedy.text:
        recipe = replace(recipe, tensor_split=(), smart_split=True)
    if "leave --split-mode out" in remedy.text:
        recipe = replace(recipe, split_mode=SplitMode.LAYER)
    words = remedy.flags.split()
    given_flags = dict(zip(words[::2], words[1::2], strict=True))
    for flag, field in (("--n-ctx", "n_ctx"), ("--n-gpu-layers", "n_gpu_layers")):
        if flag in given_flags:
            recipe = replace(recipe, **{field: int(given_flags[flag])})
    for flag, field in (("--cache-type-k", "cache_type_k"), ("--cache-type-v", "cache_type_v")):
        if flag in given_flags:
            recipe = replace(recipe, **{field: CacheType(given_flags[flag])})
    if "--reserve-mib" in given_flags:
        assert f"{given_flags['--reserve-mib']} MiB" in remedy.text
        rules = replace(rules, reserve_bytes=int(given_flags["--reserve-mib"]) * MIB)
    if more := re.search(r"GPU with (.*) free", remedy.text):
        spec = f"{spec},{more[1].replace(' ', '').replace(',', '')}"
    return recipe, rules, spec


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(
    st.integers(1, 24),
    st.sampled_from([20, 150, 700, 2000]),
    RECIPES,
    st.lists(SIZES, min_size=1, max_size=3),
    st.sampled_from([*DeviceOrder]),
)
def test_every_remedy_done_as_it_is_printed_makes_the_model_fit(
    n_layers: int, layer_mib: int, recipe: Recipe, cards: list[str], order: DeviceOrder
) -> None:
    rules, spec = replace(RULES, order=order), ",".join(cards)
    shape = dense(n_layers, layer_mib * MIB, n_embd=4096, n_ff=14336, kv=1024)
    try:
        check_recipe(recipe)
        result = plan(PlanRequest("m", shape, recipe), budgets_on(spec, rules), rules)
    except (BadRecipe, BadSplit):
        return
    for remedy in result.remedies if isinstance(result, Refusal) else ():
        done = carried_out(remedy, recipe, rules, spec)
        if done is not None:
            fits = plan(PlanRequest("m", shape, done[0]), budgets_on(done[2], done[1]), done[1])
            assert isinstance(fits, Placement), f"{remedy}: {fits}"


@pytest.mark.parametrize("mode", [SplitMode.NONE, SplitMode.ROW])
def test_one_gpu_is_refused_by_what_it_needs_of_one_gpu(mode: SplitMode) -> None:
    cards = [gpu(0, 4 * GIB), gpu(1, 3 * GIB)]
    request = PlanRequest("m", dense(10, 500 * MIB), Recipe(split_mode=mode))
    result = plan(request, cards, RULES)
    assert isinstance(result, Refusal)
    assert f"with --split-mode {mode} it needs " in result.reason
    assert "4.0 GiB may be used of GPU 0" in result.reason
    assert "layer boundary" not in result.reason
    assert ("refuse to split rows" in result.reason) == (mode is SplitMode.ROW)
    assert {s.needed_bytes for s in result.shortfalls} == {result.shortfalls[0].needed_bytes}
    assert any("leave --split-mode out" in remedy.text for remedy in result.remedies)
    on_one = place(replace(request, shape=dense(4, 500 * MIB)), cards, RULES)
    assert isinstance(on_one, Placement)
    assert len(on_one.used_shares) == 1
    apart = replace(request.recipe, smart_split=False)
    assert isinstance(place(replace(request, recipe=apart), cards, RULES), Refusal), "never over both"


def test_one_gpu_and_a_split_by_hand_exclude_each_other() -> None:
    with pytest.raises(BadRecipe, match="--split-mode none puts a model on one GPU"):
        check_recipe(Recipe(split_mode=SplitMode.NONE, tensor_split=(0.5, 0.5)))


def test_after_a_failed_load_what_fits_is_computed_from_what_the_engine_got() -> None:
    request = PlanRequest("m", dense(20, 500 * MIB, n_embd=4096, n_ff=14336, kv=1024), Recipe(n_ctx=65536))
    cards = [gpu(0, 12 * GIB), gpu(1, 12 * GIB)]
    placement = place(request, cards, RULES)
    assert isinstance(placement, Placement)
    short = placement.used_shares[1]
    lacking = Lacking(short.parts.total // 3, 1)
    found = after_failed_load(request, placement, lacking, RULES)
    n_ctx = next(int(each.flags.split()[1]) for each in found if each.flags.startswith("--n-ctx"))
    got = replace(cards[1], budget_bytes=short.parts.total - lacking.size_bytes)
    fitting = replace(request, recipe=replace(request.recipe, n_ctx=n_ctx))
    assert isinstance(place(fitting, [cards[0], got], RULES), Placement)
    assert isinstance(place(request, [cards[0], got], RULES), Refusal)
    assert after_failed_load(request, placement, Lacking(MIB, 7), RULES) == ()
