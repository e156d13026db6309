"""GPU configuration in the form in which its page shows it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cotenant.console.gpu_draft import BY_STRATEGY, MANUAL, Draft, choice_of, meaning
from cotenant.console.memory_bar import COLOURS, WIDTH, Segment, layout
from cotenant.console.view_data import Json, indices_of
from cotenant.domain.units import GIB, MIB

_NOT_PINNED: Final = "not pinned"
_TONES: Final = {"running": "busy", "rolling_back": "busy", "succeeded": "good"}
"""The tones of an apply's states; it did not go well in the others."""
_STEPS: Final = {
    "pending": ("waiting", "quiet"),
    "recreating": ("recreating", "busy"),
    "waiting_healthy": ("waiting until healthy", "busy"),
    "healthy": ("healthy", "good"),
    "failed": ("failed", "bad"),
}


def rows(config: Json, planned: Json, draft: Draft) -> list[dict[str, Any]]:
    """Return a row for each service: its need of memory, its GPU, and its warnings.

    `adjusted`: its budget is less than it needs. `by_strategy` is the menu entry for the strategy's choice,
    None for manual.
    """
    assigned = {each["service"]: each for each in planned["assignments"]}
    indices = {gpu["uuid"]: gpu["index"] for gpu in config["gpus"]}
    found = []
    for number, service in enumerate(config["services"]):
        name, vram_mb = service["name"], service["vram_mb"]
        choice, shown = draft.choice(name), assigned.get(name)
        budget = shown["vram_budget_override"] if shown else None
        needs = None if vram_mb is None else vram_mb * MIB
        by_strategy = "By the strategy"
        if choice.gpu == BY_STRATEGY and shown:
            by_strategy = f"{_gpus(shown, {}) or 'Not pinned'} · by the strategy"
        found.append(
            {
                **service,
                "needs": needs,
                "wanted": needs if budget is None else round(budget * GIB),
                "choice": choice,
                "shown": shown,
                "shown_choice": choice_of(shown, indices) if shown else None,
                "on": indices_of(shown) if shown else (),
                "given_budget": "" if budget is None or name in planned["automatic_budgets"] else budget,
                "by_strategy": None if draft.strategy == MANUAL else by_strategy,
                "adjusted": budget is not None and vram_mb is not None and budget * 1024 < vram_mb - 1,
                "warnings": [each["text"] for each in planned["warning_details"] if each["service"] == name],
                "fault": draft.faults.get(name),
                "colour": number % COLOURS,
            }
        )
    return found


def loads(config: Json, shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the planned load of each GPU; a bar is as long as the larger of its size and its load."""
    found = []
    for gpu in config["gpus"]:
        here = [row for row in shown if gpu["index"] in row["on"]]
        parts = [
            Segment("model", row["name"], (row["wanted"] or 0) // len(row["on"]), row["colour"])
            for row in here
        ]
        occupied, total = gpu["vram_occupied_mb"] * MIB, gpu["vram_total_mb"] * MIB
        planned = sum(part.bytes for part in parts)
        free = max(0, total - planned - occupied)
        parts += [Segment("foreign", "others", occupied), Segment("free", "free", free)]
        scale = max(total, planned + occupied)
        found.append(
            {
                **gpu,
                "total": total,
                "planned": planned,
                "occupied": occupied,
                "services": len(here),
                "unknown": [row["name"] for row in here if row["wanted"] is None],
                "over": planned + occupied > total,
                "segments": layout(parts, scale),
                "limit": round(total / (scale or 1) * WIDTH),
            }
        )
    return found


def gpu_names(config: Json) -> dict[int, str]:
    """Return the GPUs' names by index."""
    return {gpu["index"]: gpu["name"] for gpu in config["gpus"]}


def apply_facts(apply: Json | None, names: Mapping[int, str]) -> dict[str, Any] | None:
    """Return the progress of an apply."""
    if apply is None:
        return None
    steps = []
    for step in apply["services"]:
        word, tone = _STEPS.get(step["state"], (step["state"], "quiet"))
        steps.append({**step, "word": word, "tone": tone, "gpu": _gpus(step, names)})
    return {
        **apply,
        "word": apply["state"].replace("_", " "),
        "tone": _TONES.get(apply["state"], "bad"),
        "steps": steps,
        "done": sum(step["state"] in ("healthy", "failed") for step in steps),
    }


def containers(config: Json, states: Sequence[Json], names: Mapping[int, str]) -> dict[str, Any]:
    """Return the state of each service's container, and a summary."""
    known = {state["service"]: state for state in states}
    shown = []
    for name in (service["name"] for service in config["services"] if service["enabled"]):
        if (state := known.get(name)) is None:
            continue
        if not state["running"]:
            word, tone = ("not running", "bad") if state["container_id"] else ("no container", "quiet")
        elif state["healthy"] is False:
            word, tone = "unhealthy", "bad"
        else:
            word, tone = "healthy" if state["healthy"] else "running", "good"
        container, at = (state["container_id"] or "")[:12], place(state["assignment"], names)
        shown.append({"service": name, "word": word, "tone": tone, "container": container, "place": at})
    bad, running = (sum(each["tone"] == tone for each in shown) for tone in ("bad", "good"))
    if not states:
        text, tone = "no container engine", "quiet"
    elif bad:
        text, tone = f"{bad} of {len(shown)} services in trouble", "bad"
    elif running == len(shown):
        text, tone = "All services running", "good"
    else:
        text, tone = f"{running} of {len(shown)} services running", "busy" if running else "quiet"
    return {"text": text, "tone": tone, "services": shown}


def is_dirty(config: Json, planned: Json) -> bool:
    """Whether the form differs from the saved configuration."""
    saved = config["saved"]
    return (
        saved is None
        or saved["strategy"] != planned["strategy"]
        or [*map(meaning, saved["assignments"])] != [*map(meaning, planned["assignments"])]
    )


def place(assignment: Json | None, names: Mapping[int, str]) -> str:
    """Return where an assignment places its service, with its budget."""
    if assignment is None:
        return _NOT_PINNED
    gpu = _gpus(assignment, names)
    if not gpu:
        uuid = assignment["gpu_uuid"]
        return _NOT_PINNED if uuid is None else f"a GPU that is gone ({uuid})"
    budget = assignment["vram_budget_override"]
    return gpu if budget is None else f"{gpu}, {budget:g} GB"


def _gpus(assignment: Json, names: Mapping[int, str]) -> str:
    return ", ".join(f"GPU {index} {names.get(index, '')}".rstrip() for index in indices_of(assignment))
