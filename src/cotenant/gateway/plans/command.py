"""A plan as what one would type for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, Final

from cotenant.domain.models import Recipe
from cotenant.domain.units import MIB
from cotenant.interfaces import PlanFound
from cotenant.planning.budgets import BudgetRules

_FLAGS: Final = {
    "n_ctx": "--n-ctx",
    "parallel": "--parallel",
    "n_batch": "--n-batch",
    "n_ubatch": "--n-ubatch",
    "cache_type_k": "--cache-type-k",
    "cache_type_v": "--cache-type-v",
    "flash_attention": "--flash-attn",
    "n_gpu_layers": "--n-gpu-layers",
    "split_mode": "--split-mode",
    "split_policy": "--split-policy",
}
_SWITCHES: Final = {
    "kv_unified": "--kv-unified",
    "smart_split": "--smart-split",
    "mmap": "--mmap",
    "mlock": "--mlock",
}
_FIELDS: Final = {flag.removeprefix("--"): name for name, flag in _FLAGS.items()}
_RULES: Final = ("reserve-mib", "min-budget-mib", "overhead-mib")


def serve_command(found: PlanFound) -> str:
    """Return what serves the model so, on the machine that has these devices."""
    return shlex.join(["cotenant", "serve", *_model(found), *recipe_flags(found.recipe), *_rules(found)])


def plan_command(found: PlanFound) -> str:
    """Return what shows the plan in a terminal, on any machine if the GPUs are described."""
    gpus = [] if found.described_as is None else ["--gpus", found.described_as]
    flags = [*recipe_flags(found.recipe), *_rules(found), *gpus]
    return shlex.join(["cotenant", "plan", *_model(found), *flags])


def recipe_flags(recipe: Recipe) -> list[str]:
    """Return the flags of all that differs from what the command line takes by itself."""
    usual = Recipe()
    flags: list[str] = []
    for name, flag in _FLAGS.items():
        value = getattr(recipe, name)
        if value != getattr(usual, name):
            flags += [flag, str(value)]
    if recipe.tensor_split:
        flags += ["--tensor-split", ",".join(f"{share:g}" for share in recipe.tensor_split)]
    for name, flag in _SWITCHES.items():
        value = getattr(recipe, name)
        if value != getattr(usual, name):
            flags.append(flag if value else f"--no-{flag.removeprefix('--')}")
    return flags


def changes_of(flags: str) -> dict[str, int | str]:
    """Return what the flags of a remedy change, by the names that a request has for it."""
    words = shlex.split(flags)
    changes: dict[str, int | str] = {}
    for flag, value in zip(words[::2], words[1::2], strict=False):
        name = flag.removeprefix("--")
        if name in _FIELDS or name in _RULES:
            field = _FIELDS.get(name, name.replace("-", "_"))
            changes[field] = int(value) if value.isdecimal() else value
    return changes


def _model(found: PlanFound) -> Iterator[str]:
    yield str(found.path) if found.path else f"{found.name}.gguf"
    if found.projector_path:
        yield from ("--mmproj", str(found.projector_path))


def _rules(found: PlanFound) -> Iterator[str]:
    usual = BudgetRules()
    told: tuple[tuple[str, Any, Any], ...] = (
        ("--reserve-mib", found.reserve_bytes, usual.reserve_bytes),
        ("--min-budget-mib", found.min_budget_bytes, usual.min_budget_bytes),
        ("--overhead-mib", found.overhead_bytes, usual.overhead_bytes),
    )
    for flag, value, default in told:
        if value != default:
            yield from (flag, str(value // MIB))
