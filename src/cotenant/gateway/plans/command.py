"""The commands that serve a plan or show it."""

import shlex
from collections.abc import Iterator
from typing import Final

from cotenant.domain.models import Recipe
from cotenant.domain.placements import PlanAnswer
from cotenant.domain.settings import settings_of
from cotenant.domain.units import MIB
from cotenant.planning.budgets import BudgetRules

_FIELDS: Final = {each.option.removeprefix("--"): each.name for each in settings_of(Recipe)}
_RULES: Final = {each.option.removeprefix("--"): each for each in settings_of(BudgetRules) if each.reads}


def serve_command(found: PlanAnswer) -> str:
    """Return the command that serves the model with this plan, on a machine with these devices."""
    return shlex.join(["cotenant", "serve", *_model(found), *recipe_flags(found.recipe), *_rules(found)])


def plan_command(found: PlanAnswer) -> str:
    """Return the command that shows the plan in a terminal, on any machine if the GPUs are described."""
    gpus = [] if found.described_as is None else ["--gpus", found.described_as]
    flags = [*recipe_flags(found.recipe), *_rules(found), *gpus]
    return shlex.join(["cotenant", "plan", *_model(found), *flags])


def recipe_flags(recipe: Recipe) -> list[str]:
    """Return flags for all fields that differ from their defaults."""
    flags: list[str] = []
    for each in settings_of(Recipe):
        value = getattr(recipe, each.name)
        if value == each.default:
            continue
        if each.type is bool:
            flags.append(each.option if value else f"--no-{each.option.removeprefix('--')}")
        elif isinstance(value, tuple):
            flags += [each.option, ",".join(f"{share:g}" for share in value)]
        else:
            flags += [each.option, str(value)]
    return flags


def changes_of(flags: str) -> dict[str, int | str]:
    """Return the changes in the flags of a remedy, by the field names of a request."""
    words = shlex.split(flags)
    changes: dict[str, int | str] = {}
    for flag, value in zip(words[::2], words[1::2], strict=False):
        name = flag.removeprefix("--")
        if name in _FIELDS or name in _RULES:
            field = _FIELDS.get(name, name.replace("-", "_"))
            changes[field] = int(value) if value.isdecimal() else value
    return changes


def _model(found: PlanAnswer) -> Iterator[str]:
    yield found.path or f"{found.name}.gguf"
    if found.projector_path or found.without_projector:
        yield from ("--mmproj", found.projector_path or "none")
    if found.companions.draft is not None:
        yield from ("--draft", found.companions.draft)
    for adapter in found.companions.adapters:
        yield from ("--lora", f"{adapter.path}:{adapter.scale:g}")


def _rules(found: PlanAnswer) -> Iterator[str]:
    if found.by_engine:
        yield "--use-fit-params"
    for each in _RULES.values():
        value = getattr(found, each.name)
        if value != each.default:
            yield from (each.option, str(value // MIB))
