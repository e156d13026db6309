"""What sections say, by the names of what is made of them."""

from __future__ import annotations

import math
from typing import Any, Final

from cotenant.config.schema import Model, RecipeSection, Timeouts
from cotenant.domain.models import ModelKind
from cotenant.domain.units import MIB

_RECIPE_NAMES: Final = {"ctx": "n_ctx", "flash_attn": "flash_attention"}
"""Settings that a Recipe calls something else."""
_RECIPE_SETTINGS: Final = tuple(
    key for key in RecipeSection.model_fields if key not in ("keep_alive", "timeout")
)


def recipe_of(section: RecipeSection) -> dict[str, Any]:
    """Return what a section says of the recipe, by the recipe's names."""
    told = told_of(section, *_RECIPE_SETTINGS)
    return {_RECIPE_NAMES.get(key, key): value for key, value in told.items()}


def told_of(section: Any, *keys: str) -> dict[str, Any]:
    """Return those settings of a section that were given."""
    return {key: value for key in keys if (value := getattr(section, key)) is not None}


def keep_alive_of(section: RecipeSection, default: float | None) -> float | None:
    """Return its keep-alive in seconds, None for ever, or the default."""
    if section.keep_alive is None:
        return default
    return None if math.isinf(section.keep_alive) else section.keep_alive


def timeouts_of(section: Timeouts) -> dict[ModelKind, float]:
    """Return seconds by kind of model."""
    kinds = {
        ModelKind.TEXT: section.chat,
        ModelKind.EMBEDDING: section.embeddings,
        ModelKind.RERANK: section.rerank,
    }
    return {kind: seconds for kind, seconds in kinds.items() if seconds is not None}


def mps_shares_of(model: Model) -> dict[str, Any]:
    """Return what a model says of its share of a card under MPS, by a ModelEntry's names."""
    shares: dict[str, Any] = {}
    if model.mps_threads is not None:
        shares["mps_threads_percent"] = model.mps_threads
    if model.mps_memory_margin_mib is not None:
        mib = model.mps_memory_margin_mib
        shares["mps_margin_bytes"] = None if math.isinf(mib) else int(mib) * MIB
    return shares
