"""Profiles: named sets of settings for a kind of machine. Explicit settings take precedence."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from cotenant.domain.models import MOST_LAYERS, CacheType, FlashAttention


class Profile(StrEnum):
    """The known profiles."""

    LOW_MEMORY = "low-memory"


_RECIPES: Final[Mapping[Profile, Mapping[str, Any]]] = {
    Profile.LOW_MEMORY: {
        "n_ctx": 2048,
        "parallel": 1,
        "n_ubatch": 128,
        "cache_type_k": CacheType.Q8_0,
        "cache_type_v": CacheType.Q8_0,
        "flash_attention": FlashAttention.ON,
        "n_gpu_layers": MOST_LAYERS,
    }
}
_KEEP_ALIVE_S: Final[Mapping[Profile, float]] = {Profile.LOW_MEMORY: 60.0}
_MAX_LOADED: Final[Mapping[Profile, int]] = {Profile.LOW_MEMORY: 1}


def recipe_values(profile: Profile | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a profile adds to the `given` ones, by the names of Recipe's fields.

    If flash attention is off, V keeps its type: a quantised one needs it.
    """
    if profile is None:
        return {}
    values = {name: value for name, value in _RECIPES[profile].items() if name not in given}
    if given.get("flash_attention") is FlashAttention.OFF:
        values.pop("cache_type_v", None)
    if given.get("tensor_split"):
        values.pop("n_gpu_layers", None)
    return values


def keep_alive_s(profile: Profile | None, default: float | None) -> float | None:
    """Return the keep-alive of a model that sets none; None: for ever."""
    return default if profile is None else _KEEP_ALIVE_S[profile]


def max_loaded(profile: Profile | None) -> int | None:
    """Return how many models may be loaded at once; None: as many as fit."""
    return None if profile is None else _MAX_LOADED[profile]
