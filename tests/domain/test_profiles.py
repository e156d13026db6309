from typing import Any

import pytest

from cotenant.domain.models import CacheType, FlashAttention, Recipe, check_recipe
from cotenant.domain.profiles import Profile, keep_alive_s, max_loaded, recipe_values

LOW = Profile.LOW_MEMORY


def test_no_profile_adds_nothing() -> None:
    assert recipe_values(None, {}) == {}
    assert (keep_alive_s(None, 300.0), max_loaded(None)) == (300.0, None)


def test_the_low_memory_profile_is_a_recipe_that_an_engine_runs() -> None:
    recipe = Recipe(**recipe_values(LOW, {}))

    check_recipe(recipe)
    assert (recipe.n_ctx, recipe.parallel, recipe.cache_type_v) == (2048, 1, CacheType.Q8_0)
    assert recipe.flash_attention is FlashAttention.ON
    assert (keep_alive_s(LOW, None), max_loaded(LOW)) == (60.0, 1)


@pytest.mark.parametrize("name", sorted(recipe_values(LOW, {})))
def test_what_is_told_is_left_as_it_is(name: str) -> None:
    told: dict[str, Any] = {name: getattr(Recipe(), name)}

    assert name not in recipe_values(LOW, told)


def test_without_flash_attention_v_keeps_its_type() -> None:
    told: dict[str, Any] = {"flash_attention": FlashAttention.OFF}

    recipe = Recipe(**told, **recipe_values(LOW, told))

    check_recipe(recipe)
    assert (recipe.cache_type_k, recipe.cache_type_v) == (CacheType.Q8_0, CacheType.F16)


def test_a_split_by_hand_says_itself_how_many_layers_there_are() -> None:
    assert "n_gpu_layers" not in recipe_values(LOW, {"tensor_split": (3.0, 1.0)})
