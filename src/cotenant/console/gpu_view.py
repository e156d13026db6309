"""GPU configuration in the form in which its page shows it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cotenant.console.gpu_draft import MANUAL, Draft, gone_uuid, meaning
from cotenant.console.memory_bar import COLOURS, WIDTH, Segment, layout
from cotenant.console.view_data import Json
from cotenant.domain.units import GIB, MIB

NOT_PINNED: Final = "not pinned"
_TONES: Final = {
    "running": "busy",
    "succeeded": "good",
    "rolling_back": "busy",
    "rolled_back": "bad",
    "failed": "bad",
    "interrupted": "bad",
}
_STEPS: Final = {
    "pending": ("waiting", "quiet"),
    "recreating": ("recreating", "busy"),
    "waiting_healthy": ("waiting until healthy", "busy"),
    "healthy": ("healthy", "good"),
    "failed": ("failed", "bad"),
}


def rows(config: Json, planned: Json, draft: Draft) -> list[dict[str, Any]]:
    """Return a row for each service: its need of memory, its GPU, and its warnings."""
    shown = {each["service"]: each for each in planned["assignments"]}
    warnings: dict[str, list[str]] = {}
    for warning in planned["warning_details"]:
        warnings.setdefault(warning["service"], []).append(warning["text"])
    return [
        {
            **service,
            "needs": None if service["vram_mb"] is None else service["vram_mb"] * MIB,
            "choice": draft.choice(service["name"]),
            "gone": gone_uuid(draft.choice(service["name"]).gpu),
            "shown": shown.get(service["name"]),
            "adjusted": _adjusted(service, shown.get(service["name"])),
            "warnings": warnings.get(service["name"], []),
            "fault": draft.faults.get(service["name"]),
            "colour": number % COLOURS,
        }
        for number, service in enumerate(config["services"])
    ]


def loads(config: Json, shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the planned load of each GPU; a bar is as long as the larger of its size and its load."""
    found = []
    for gpu in config["gpus"]:
        here = [row for row in shown if row["shown"] and row["shown"]["gpu_index"] == gpu["index"]]
        parts = [Segment("model", row["name"], _wanted(row) or 0, row["colour"]) for row in here]
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
                "unknown": [row["name"] for row in here if _wanted(row) is None],
                "over": planned + occupied > total,
                "segments": layout(parts, scale),
                "limit": round(total / (scale or 1) * WIDTH),
            }
        )
    return found


def differences(config: Json, diff: Sequence[Json]) -> list[dict[str, Any]]:
    """Return the changes that applying would make."""
    names = gpu_names(config)
    return [
        {**change, "before": _place(change["before"], names), "after": _place(change["after"], names)}
        for change in diff
    ]


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
        steps.append({**step, "word": word, "tone": tone, "gpu": _gpu(step["gpu_index"], names)})
    return {
        **apply,
        "word": apply["state"].replace("_", " "),
        "tone": _TONES.get(apply["state"], "quiet"),
        "steps": steps,
        "done": sum(step["state"] in ("healthy", "failed") for step in steps),
    }


def containers(config: Json, states: Sequence[Json], names: Mapping[int, str]) -> dict[str, Any]:
    """Return the state of each service's container, and a summary."""
    enabled = [service["name"] for service in config["services"] if service["enabled"]]
    known = {state["service"]: state for state in states}
    shown = [_container(name, known[name], names) for name in enabled if name in known]
    bad = [each for each in shown if each["tone"] == "bad"]
    running = [each for each in shown if each["tone"] == "good"]
    if not states:
        text, tone = "no container engine", "quiet"
    elif bad:
        text, tone = f"{len(bad)} of {len(shown)} services in trouble", "bad"
    elif len(running) == len(shown):
        text, tone = "All services running", "good"
    else:
        text, tone = f"{len(running)} of {len(shown)} services running", "busy" if running else "quiet"
    return {"text": text, "tone": tone, "services": shown}


def history(entries: Sequence[Json], names: Mapping[int, str], current: int) -> list[dict[str, Any]]:
    """Return the configurations saved, newest first."""
    return [
        {
            **entry,
            "apply": apply_facts(entry["apply"], names),
            "current": entry["number"] == current,
            "places": [(each["service"], _place(each, names)) for each in entry["assignments"]],
        }
        for entry in entries
    ]


def is_dirty(config: Json, planned: Json) -> bool:
    """Whether the form differs from the saved configuration."""
    saved = config["saved"]
    return (
        saved is None
        or saved["strategy"] != planned["strategy"]
        or [*map(meaning, saved["assignments"])] != [*map(meaning, planned["assignments"])]
    )


def option_label(gpu: Json) -> str:
    """Return the menu entry of a GPU."""
    label = f"GPU {gpu['index']} · {gpu['name']} · {gpu['vram_total_mb'] / 1024:,.1f} GiB"
    return label if gpu["healthy"] else f"{label} · unhealthy"


def by_strategy_label(row: Mapping[str, Any], draft: Draft) -> str | None:
    """Return the menu entry for the strategy's choice; None for manual."""
    if draft.strategy == MANUAL:
        return None
    shown = row["shown"]
    if row["choice"].is_manual or shown is None:
        return "By the strategy"
    return f"{_gpu(shown['gpu_index'], {}) or 'Not pinned'} · by the strategy"


def _container(name: str, state: Json, names: Mapping[int, str]) -> dict[str, Any]:
    if not state["running"]:
        word, tone = ("not running", "bad") if state["container_id"] else ("no container", "quiet")
    elif state["healthy"] is False:
        word, tone = "unhealthy", "bad"
    else:
        word, tone = "healthy" if state["healthy"] else "running", "good"
    assignment = state["assignment"]
    return {
        "service": name,
        "word": word,
        "tone": tone,
        "container": (state["container_id"] or "")[:12],
        "place": _place(assignment, names),
    }


def _wanted(row: Mapping[str, Any]) -> int | None:
    budget = row["shown"]["vram_budget_override"]
    needs: int | None = row["needs"]
    return needs if budget is None else round(budget * GIB)


def _adjusted(service: Json, shown: Json | None) -> bool:
    """Whether a service's budget is less than it needs."""
    if shown is None or shown["vram_budget_override"] is None or service["vram_mb"] is None:
        return False
    return bool(shown["vram_budget_override"] * 1024 < service["vram_mb"] - 1)


def _place(assignment: Json | None, names: Mapping[int, str]) -> str:
    if assignment is None:
        return NOT_PINNED
    gpu = _gpu(assignment["gpu_index"], names)
    if gpu is None:
        uuid = assignment["gpu_uuid"]
        return NOT_PINNED if uuid is None else f"a GPU that is gone ({uuid})"
    budget = assignment["vram_budget_override"]
    return gpu if budget is None else f"{gpu}, {budget:g} GB"


def _gpu(index: int | None, names: Mapping[int, str]) -> str | None:
    if index is None:
        return None
    name = names.get(index)
    return f"GPU {index} {name}" if name else f"GPU {index}"
