"""Which recipes an engine can run; it hangs or dies on some others."""

from dataclasses import replace
from typing import Final

from cotenant.domain.errors import BadRecipe
from cotenant.domain.models import FlashAttention, ModelKind, Recipe
from cotenant.domain.settings import settings_of

_BOUNDED: Final = tuple(each for each in settings_of(Recipe) if each.type is int)


def with_micro_batch(recipe: Recipe, kind: ModelKind = ModelKind.TEXT) -> Recipe:
    """Return the recipe with the micro-batch that the engine uses for a model of this kind.

    llama.cpp cuts a micro-batch that is larger than the batch. A model that pools computes each text in one
    micro-batch and refuses a longer text, so its micro-batch is the whole batch.
    """
    return replace(recipe, n_ubatch=recipe.n_batch if kind.pools else min(recipe.n_ubatch, recipe.n_batch))


def check_recipe(recipe: Recipe) -> None:
    """Raise BadRecipe for values that are out of range or contradict each other."""
    for each in _BOUNDED:
        value = getattr(recipe, each.name)
        if not each.least <= value <= each.most:
            raise BadRecipe(
                f"{each.option} {value} is out of range", hint=f"From {each.least} to {each.most:,}."
            )
    if recipe.n_ubatch > recipe.n_batch:
        raise BadRecipe(
            f"--n-ubatch {recipe.n_ubatch} is more than --n-batch {recipe.n_batch}",
            hint="A batch is computed in micro-batches: raise --n-batch or lower --n-ubatch.",
        )
    if recipe.parallel > recipe.n_ctx:
        raise BadRecipe(
            f"--n-ctx {recipe.n_ctx} leaves no token for each of {recipe.parallel} slots",
            hint="The context is shared by the slots: raise --n-ctx or lower --parallel.",
        )
    if recipe.cache_type_v.quantised and recipe.flash_attention is FlashAttention.OFF:
        raise BadRecipe(
            f"--cache-type-v {recipe.cache_type_v} needs flash attention, which is off",
            hint="Use --flash-attn on, or keep V in f16.",
        )
