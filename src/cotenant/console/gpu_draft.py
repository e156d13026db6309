"""What somebody is about to save: a strategy, and where each service shall go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cotenant.console.view_data import Json

MANUAL: Final = "manual"
BY_STRATEGY: Final = "auto"
UNPINNED: Final = "none"
_GONE: Final = "gone:"
_MOST_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a service shall go: by the strategy, to a GPU by index, or to one that is gone (`gone:` and its
    UUID); under manual also nowhere. `budget` is as it was typed, empty for none."""

    gpu: str = BY_STRATEGY
    budget: str = ""

    @property
    def by_hand(self) -> bool:
        """Whether somebody chose it."""
        return self.gpu != BY_STRATEGY


@dataclass(frozen=True, slots=True)
class Draft:
    """A form as it is now. `base` is the number of the configuration that it began with, 0 for none.

    `faults` are what is wrong with what was typed, by service.
    """

    strategy: str
    choices: Mapping[str, Choice]
    base: int = 0
    faults: Mapping[str, str] = field(default_factory=dict)

    def choice(self, service: str) -> Choice:
        """Return where a service shall go."""
        return self.choices.get(service, Choice(UNPINNED if self.strategy == MANUAL else BY_STRATEGY))

    def payload(self) -> dict[str, Any]:
        """Return the draft as the API takes it."""
        assignments = [
            _assignment(service, choice)
            for service, choice in self.choices.items()
            if choice.by_hand or choice.budget
        ]
        return {"strategy": self.strategy, "assignments": assignments}


def saved_draft(told: Json, by_strategy: Sequence[Json]) -> Draft:
    """Return what is saved as a draft; `by_strategy` is what the strategy would assign now.

    What a strategy other than manual would do again anyway is left to it.
    """
    saved = told["saved"]
    if saved is None:
        return Draft(told["strategy"], {})
    again = {each["service"]: each for each in by_strategy}
    choices: dict[str, Choice] = {}
    for each in saved["assignments"]:
        choice = by_hand(each, told["gpus"])
        if told["strategy"] != MANUAL and (choice.gpu == UNPINNED or _same(each, again.get(each["service"]))):
            choice = Choice()
        choices[each["service"]] = choice
    return Draft(told["strategy"], choices, saved["number"])


def read_draft(form: Mapping[str, str], services: Sequence[Json]) -> Draft:
    """Read a form that was posted.

    A strategy that has just been chosen assigns everything anew; manual begins with what was shown.
    """
    strategy, before = form.get("strategy", MANUAL), form.get("strategy-before", "")
    choices: dict[str, Choice] = {}
    faults: dict[str, str] = {}
    for service in services:
        name = service["name"]
        choice = Choice(form.get(f"gpu:{name}", BY_STRATEGY), form.get(f"budget:{name}", "").strip())
        if strategy != before or (strategy != MANUAL and choice.gpu == UNPINNED):
            choice = Choice()
        if strategy == MANUAL and not choice.by_hand:
            choice = Choice(form.get(f"shown:{name}", UNPINNED), form.get(f"shown-budget:{name}", "").strip())
        fault = _fault(choice.budget)
        if fault is not None:
            faults[name] = fault
            choice = replace(choice, budget="")
        choices[name] = choice
    return Draft(strategy, choices, number_of(form.get("base", "")) or 0, faults)


def number_of(text: str) -> int | None:
    """Read a number that a form carries; None for what no page has written."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def by_hand(assignment: Json, gpus: Sequence[Json]) -> Choice:
    """Return an assignment as a choice among the GPUs that there are; they may be numbered anew."""
    index, uuid = assignment["gpu_index"], assignment["gpu_uuid"]
    budget = assignment["vram_budget_override"]
    if uuid is not None:
        index = next((gpu["index"] for gpu in gpus if gpu["uuid"] == uuid), None)
    gpu = str(index) if index is not None else UNPINNED if uuid is None else f"{_GONE}{uuid}"
    return Choice(gpu, "" if budget is None else f"{budget:g}")


def meaning(assignment: Json) -> tuple[Any, ...]:
    """Return what two assignments share that mean the same: a GPU is its UUID, whatever its number."""
    uuid = assignment["gpu_uuid"]
    gpu = assignment["gpu_index"] if uuid is None else uuid
    return assignment["service"], gpu, assignment["vram_budget_override"]


def gone_uuid(gpu: str) -> str | None:
    """Return the UUID of a chosen GPU that is gone, None for another choice."""
    return gpu.removeprefix(_GONE) if gpu.startswith(_GONE) else None


def _assignment(service: str, choice: Choice) -> dict[str, Any]:
    assignment: dict[str, Any] = {"service": service}
    uuid = gone_uuid(choice.gpu)
    if uuid is not None:
        assignment["gpu_uuid"] = uuid
    elif (index := number_of(choice.gpu)) is not None:
        assignment["gpu_index"] = index
    if choice.budget and choice.gpu != UNPINNED:
        assignment["vram_budget_override"] = float(choice.budget)
    return assignment


def _same(one: Json, other: Json | None) -> bool:
    return other is not None and meaning(one) == meaning(other)


def _fault(budget: str) -> str | None:
    if not budget:
        return None
    try:
        value = float(budget)
    except ValueError:
        value = math.nan
    return (
        None if math.isfinite(value) and value > 0 else f"{budget[:20]!r} is no budget: type GB, as in 3.5."
    )
