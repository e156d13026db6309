"""Which recipes an engine can run: it hangs or dies on some of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cotenant.domain.errors import BadRecipe
from cotenant.domain.models import FlashAttention, ModelKind, Recipe

MAX_CTX: Final = 1 << 24
MAX_PARALLEL: Final = 256
"""`LLAMA_MAX_SEQ` of llama.cpp."""
MAX_BATCH: Final = 1 << 20


def with_micro_batch(recipe: Recipe, kind: ModelKind = ModelKind.TEXT) -> Recipe:
    """Return the recipe with the micro-batch that the engine uses for a model of this kind.

    llama.cpp cuts a micro-batch that is larger than the batch. A model that pools computes each text in one
    micro-batch and refuses a longer text, so its micro-batch is the whole batch.
    """
    return replace(recipe, n_ubatch=recipe.n_batch if kind.pools else min(recipe.n_ubatch, recipe.n_batch))


def check_recipe(recipe: Recipe) -> None:
    """Raise BadRecipe for values out of range or at odds with each other."""
    _in_range("--n-ctx", recipe.n_ctx, MAX_CTX)
    _in_range("--parallel", recipe.parallel, MAX_PARALLEL)
    _in_range("--n-batch", recipe.n_batch, MAX_BATCH)
    _in_range("--n-ubatch", recipe.n_ubatch, MAX_BATCH)
    if recipe.n_ubatch > recipe.n_batch:
        raise BadRecipe(
            f"--n-ubatch {recipe.n_ubatch} is more than --n-batch {recipe.n_batch}",
            hint="A batch is worked off in micro-batches: raise --n-batch or lower --n-ubatch.",
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


def _in_range(flag: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise BadRecipe(f"{flag} {value} is out of range", hint=f"From 1 to {most:,}.")
