"""The unsaved state of the form: a strategy and the GPU of each service."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cotenant.console.view_data import Json

MANUAL: Final = "manual"
BY_STRATEGY: Final = "auto"
UNPINNED: Final = "none"
_GONE: Final = "gone:"
_MAX_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Choice:
    """The GPU of a service: chosen by the strategy, an index, a missing GPU (`gone:` and its UUID), or none.

    `budget` is the text as typed, empty for none.
    """

    gpu: str = BY_STRATEGY
    budget: str = ""

    @property
    def is_manual(self) -> bool:
        """Whether the user chose the GPU."""
        return self.gpu != BY_STRATEGY


@dataclass(frozen=True, slots=True)
class Draft:
    """The state of the form. `base` is the number of the configuration it started from, 0 for none.

    `faults` are errors in the typed values, by service.
    """

    strategy: str
    choices: Mapping[str, Choice]
    base: int = 0
    faults: Mapping[str, str] = field(default_factory=dict)

    def choice(self, service: str) -> Choice:
        """Return the choice for a service."""
        return self.choices.get(service, Choice(UNPINNED if self.strategy == MANUAL else BY_STRATEGY))

    def payload(self) -> dict[str, Any]:
        """Return the draft as a body for the API."""
        assignments = [
            _assignment(service, choice)
            for service, choice in self.choices.items()
            if choice.is_manual or choice.budget
        ]
        return {"strategy": self.strategy, "assignments": assignments}


def saved_draft(config: Json, by_strategy: Sequence[Json]) -> Draft:
    """Return the saved configuration as a draft; `by_strategy` is what the strategy would assign now.

    An assignment that the strategy would make again is left to the strategy.
    """
    saved = config["saved"]
    if saved is None:
        return Draft(config["strategy"], {})
    again = {each["service"]: each for each in by_strategy}
    choices: dict[str, Choice] = {}
    for each in saved["assignments"]:
        choice = choice_of(each, config["gpus"])
        if config["strategy"] != MANUAL and (
            choice.gpu == UNPINNED or _same(each, again.get(each["service"]))
        ):
            choice = Choice()
        choices[each["service"]] = choice
    return Draft(config["strategy"], choices, saved["number"])


def read_draft(form: Mapping[str, str], services: Sequence[Json]) -> Draft:
    """Read a posted form.

    A newly selected strategy assigns everything again; manual starts from the assignments shown.
    """
    strategy, before = form.get("strategy", MANUAL), form.get("strategy-before", "")
    choices: dict[str, Choice] = {}
    faults: dict[str, str] = {}
    for service in services:
        name = service["name"]
        choice = Choice(form.get(f"gpu:{name}", BY_STRATEGY), form.get(f"budget:{name}", "").strip())
        if strategy != before or (strategy != MANUAL and choice.gpu == UNPINNED):
            choice = Choice()
        if strategy == MANUAL and not choice.is_manual:
            choice = Choice(form.get(f"shown:{name}", UNPINNED), form.get(f"shown-budget:{name}", "").strip())
        fault = _fault(choice.budget)
        if fault is not None:
            faults[name] = fault
            choice = replace(choice, budget="")
        choices[name] = choice
    return Draft(strategy, choices, number_of(form.get("base", "")) or 0, faults)


def number_of(text: str) -> int | None:
    """Read a number of a form; None if it is not one."""
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else None


def choice_of(assignment: Json, gpus: Sequence[Json]) -> Choice:
    """Return an assignment as a choice among the current GPUs, whose indices may have changed."""
    index, uuid = assignment["gpu_index"], assignment["gpu_uuid"]
    budget = assignment["vram_budget_override"]
    if uuid is not None:
        index = next((gpu["index"] for gpu in gpus if gpu["uuid"] == uuid), None)
    gpu = str(index) if index is not None else UNPINNED if uuid is None else f"{_GONE}{uuid}"
    return Choice(gpu, "" if budget is None else f"{budget:g}")


def meaning(assignment: Json) -> tuple[Any, ...]:
    """Return a key that is equal for equivalent assignments: a GPU counts by its UUID, not its index."""
    uuid = assignment["gpu_uuid"]
    gpu = assignment["gpu_index"] if uuid is None else uuid
    return assignment["service"], gpu, assignment["vram_budget_override"]


def gone_uuid(gpu: str) -> str | None:
    """Return the UUID of a choice of a missing GPU, None for other choices."""
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
    if math.isfinite(value) and value > 0:
        return None
    return f"{budget[:20]!r} is not a budget: enter GB, as in 3.5."
