"""The unsaved state of the form: a strategy and the GPU of each service."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.console.view_data import Json

MANUAL: Final = "manual"
BY_STRATEGY: Final = "auto"
UNPINNED: Final = "none"
_COUNT: Final = "count="
_GONE: Final = "gone:"


@dataclass(frozen=True, slots=True)
class Choice:
    """The GPU of a service: chosen by the strategy, an index, a missing GPU (`gone:` and its UUID), or none.

    Or several: with commas, or `count=` and a number or `all`. `budget` is the text as typed, empty for none.
    """

    gpu: str = BY_STRATEGY
    budget: str = ""

    def payload(self) -> dict[str, Any]:
        """Return the GPUs as a part of a body for the API."""
        first, *more = (
            {
                "gpu_index": number_of(gpu),
                "gpu_uuid": gpu.removeprefix(_GONE) if gpu.startswith(_GONE) else None,
            }
            for gpu in self.gpu.split(",")
        )
        count = self.gpu.removeprefix(_COUNT) if self.gpu.startswith(_COUNT) else ""
        return {**first, "more_gpus": more, "gpu_count": number_of(count) or count or None}


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
            {
                "service": service,
                **choice.payload(),
                "vram_budget_override": (
                    float(choice.budget) if choice.budget and choice.gpu != UNPINNED else None
                ),
            }
            for service, choice in self.choices.items()
            if choice.gpu != BY_STRATEGY or choice.budget
        ]
        return {"strategy": self.strategy, "assignments": assignments}


def saved_draft(config: Json, by_strategy: Sequence[Json]) -> Draft:
    """Return the saved configuration as a draft; `by_strategy` is what the strategy would assign now.

    An assignment that the strategy would make again is left to the strategy, unless it was made by hand.
    """
    strategy, saved = config["strategy"], config["saved"]
    if saved is None:
        return Draft(strategy, {})
    again = [*map(meaning, by_strategy)]
    # The indices of GPUs may have changed since.
    indices = {gpu["uuid"]: gpu["index"] for gpu in config["gpus"]}
    choices: dict[str, Choice] = {}
    for each in saved["assignments"]:
        automatic = each["service"] in config["automatic_budgets"]
        budget = None if automatic else each["vram_budget_override"]
        gpu = choice_of(each, indices)
        left = meaning(each) in again and each["service"] not in config["set_by_hand"]
        if strategy != MANUAL and (gpu == UNPINNED or left):
            choices[each["service"]] = Choice()
        else:
            choices[each["service"]] = Choice(gpu, "" if budget is None else f"{budget:g}")
    return Draft(strategy, choices, saved["number"])


def choice_of(assignment: Json, indices: Mapping[str, int]) -> str:
    """Return the GPUs of an assignment as a choice; `indices` are those of the present GPUs, by UUID."""
    if assignment["gpu_count"] is not None:
        return f"{_COUNT}{assignment['gpu_count']}"
    found = []
    for gpu in (assignment, *assignment["more_gpus"]):
        uuid = gpu["gpu_uuid"]
        index = gpu["gpu_index"] if uuid is None else indices.get(uuid)
        found.append(str(index) if index is not None else UNPINNED if uuid is None else f"{_GONE}{uuid}")
    return ",".join(found)


def read_draft(form: Mapping[str, str], services: Sequence[Json]) -> Draft:
    """Read a posted form.

    A newly selected strategy assigns everything again; manual starts from the assignments shown.
    """
    strategy, before = form.get("strategy", MANUAL), form.get("strategy-before", "")
    choices: dict[str, Choice] = {}
    faults: dict[str, str] = {}
    for name in (service["name"] for service in services):
        gpu, budget = form.get(f"gpu:{name}", BY_STRATEGY), form.get(f"budget:{name}", "").strip()
        if strategy != before or (strategy != MANUAL and gpu == UNPINNED):
            gpu, budget = BY_STRATEGY, ""
        if strategy == MANUAL and gpu == BY_STRATEGY:
            gpu, budget = form.get(f"shown:{name}", UNPINNED), form.get(f"shown-budget:{name}", "").strip()
        if budget and not _is_budget(budget):
            faults[name] = f"{budget[:20]!r} is not a budget: enter GB, as in 3.5."
            budget = ""
        choices[name] = Choice(gpu, budget)
    return Draft(strategy, choices, number_of(form.get("base", "")) or 0, faults)


def number_of(text: str) -> int | None:
    """Read a number of a form; None if it is not one."""
    return int(text) if text.isdecimal() and len(text) <= 9 else None


def meaning(assignment: Json) -> tuple[Any, ...]:
    """Return a key that is equal for equivalent assignments: a GPU counts by its UUID, not its index."""
    gpus = frozenset(gpu["gpu_uuid"] or gpu["gpu_index"] for gpu in (assignment, *assignment["more_gpus"]))
    return assignment["service"], gpus, assignment["gpu_count"], assignment["vram_budget_override"]


def _is_budget(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
