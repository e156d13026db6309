"""GPU configuration as tables for people, from the daemon's JSON."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from cotenant.cli.table import Column, table_lines
from cotenant.domain.units import GIB, MIB, format_bytes, format_count, format_duration

_HEALTH: Final = {True: "healthy", False: "unhealthy", None: "running"}
_MIN_WIDTH: Final = 8
"""Characters that a column keeps on a terminal of any width."""

Json = Mapping[str, Any]


def configuration_lines(shown: Json) -> Iterator[str]:
    """Show which GPU each service is assigned to, with warnings and problems."""
    saved, applied = (shown[key] for key in ("saved", "applied"))
    saved_text = f"{saved['number']}, {moment(saved['saved_at'])}" if saved else "never"
    yield (
        f"Strategy: {shown['strategy']}   Saved: {saved_text}   "
        f"Applied: {applied['number'] if applied else 'never'}"
    )
    assigned = {each["service"]: each for each in shown["assignments"]}
    columns: Sequence[Column[Json]] = (
        Column("SERVICE", lambda each: each["name"] + ("" if each["enabled"] else " (off)")),
        Column("MODEL", lambda each: each["model"] or "-", min_width=_MIN_WIDTH),
        Column("NEEDS", _needs, right=True),
        Column("GPU", lambda each: where(assigned.get(each["name"]), shown["gpus"])),
        Column("BUDGET", lambda each: _budget(assigned.get(each["name"])), right=True),
    )
    yield from table_lines(columns, shown["services"], width=_terminal_width())
    if not shown["services"]:
        yield "no services"
    yield from _notes(shown)
    if shown["changes"]:
        names = ", ".join(change["service"] for change in shown["changes"])
        yield f"Not applied yet: {names}. `cotenant services apply` does it."


def preview_lines(preview: Json, shown: Json) -> Iterator[str]:
    """Show what a strategy would assign, what applying that would recreate, and how full GPUs get."""
    yield f"Strategy: {preview['strategy']}"
    services = {service["name"]: service for service in shown["services"]}
    changes = {change["service"]: change for change in preview["diff"]}
    columns: Sequence[Column[Json]] = (
        Column("SERVICE", lambda each: each["service"]),
        Column("NEEDS", lambda each: _needs(services.get(each["service"], {})), right=True),
        Column("GPU", lambda each: where(each, shown["gpus"]), min_width=_MIN_WIDTH),
        Column("BUDGET", _budget, right=True),
        Column("CHANGE", lambda each: _change(changes.get(each["service"]))),
    )
    yield from table_lines(columns, preview["assignments"], width=_terminal_width())
    for gpu in shown["gpus"]:
        yield _filled(gpu, preview["assignments"], services)
    yield from _notes(preview)
    if not preview["diff"]:
        yield "No difference from what runs."


def recommendation_lines(found: Json) -> Iterator[str]:
    """Show every strategy with its score and what it consists of, then why which is recommended."""
    columns: Sequence[Column[Json]] = (
        Column("STRATEGY", lambda each: each["strategy"]),
        Column("SCORE", lambda each: f"{each['score']:g}", right=True),
        Column("FITS", lambda each: "yes" if each["fits"] else "no"),
        Column("OVER", lambda each: _mb(each["worst_over_mb"] or None), right=True),
        Column("LLM FREE", lambda each: _mb(each["llm_headroom_mb"]), right=True),
        Column("CRITICAL", lambda each: _percent(each["critical_speed"]), right=True),
        Column("MEMORY", lambda each: _percent(each["memory_share"]), right=True),
        Column("CHANGES", lambda each: str(each["n_changes"]), right=True),
    )
    yield from table_lines(columns, found["strategies"])
    for each in found["strategies"]:
        yield f"{each['strategy']}: {each['reason']}"
    yield from filter(None, (found["text"], found["tie"]))
    measured = ", ".join(f"{name} {_mb(count)}" for name, count in found["measured_mb"].items())
    yield (
        f"Measured: {measured}; for other services their stated need counts."
        if measured
        else ("No service's use was measured: their stated needs count.")
    )


def _mb(count: int | None) -> str:
    return "-" if count is None else format_bytes(count * MIB)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def apply_lines(apply: Json | None) -> Iterator[str]:
    """Show the state of an apply and the progress of each of its services."""
    if apply is None:
        yield "Nothing was applied yet."
        return
    yield apply_sentence(apply)
    width = max((len(each["service"]) for each in apply["services"]), default=0)
    for each in apply["services"]:
        yield f"  {progress_line(each, width)}"


def apply_sentence(apply: Json) -> str:
    """Return the state of an apply in one line."""
    started = datetime.fromisoformat(apply["started_at"])
    if apply["finished_at"] is None:
        when = f"started {moment(apply['started_at'])}"
    else:
        took_s = (datetime.fromisoformat(apply["finished_at"]) - started).total_seconds()
        when = f"took {format_duration(max(0.0, took_s))}, ended {moment(apply['finished_at'])}"
    message = f": {apply['message']}" if apply["message"] else ""
    return f"Apply {apply['number']} {apply['state'].replace('_', ' ')} ({when}){message}"


def progress_line(progress: Json, width: int = 0) -> str:
    """Return the progress of one service in one line."""
    gpus = _indices(progress)
    where_to = f" on GPU {gpus}" if gpus else ""
    message = f": {progress['message']}" if progress["message"] else ""
    return f"{progress['service']:<{width}}  {progress['state'].replace('_', ' ')}{where_to}{message}"


def container_lines(containers: Sequence[Json]) -> Iterator[str]:
    """Show the state of each container, and the assignment with which it was created."""
    if containers:
        yield from table_lines(_CONTAINER_COLUMNS, containers)
    else:
        yield "No containers are known: no container engine answers, or no service was ever created."


def history_lines(history: Sequence[Json]) -> Iterator[str]:
    """List configurations, newest first."""
    if history:
        yield from table_lines(_HISTORY_COLUMNS, history, width=_terminal_width())
    else:
        yield "Nothing was saved yet."


def where(assignment: Json | None, gpus: Sequence[Json]) -> str:
    """Name the GPUs of an assignment: `1 RTX A400`."""
    if assignment is None:
        return "-"
    named = ", ".join(_gpu(each, gpus) for each in (assignment, *assignment["more_gpus"]))
    return f"{named} (all)" if assignment["gpu_count"] == "all" else named


def _gpu(assignment: Json, gpus: Sequence[Json]) -> str:
    index, uuid = assignment["gpu_index"], assignment["gpu_uuid"]
    if index is None:
        return "not pinned" if uuid is None else f"{uuid}, not here"
    name = next((gpu["name"] for gpu in gpus if gpu["index"] == index), None)
    if name is None:
        return f"{index}, not here" if gpus else str(index)
    return f"{index} {name}"


def moment(text: str) -> str:
    """Render an instant in local time."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _notes(shown: Json) -> Iterator[str]:
    for warning in shown["warnings"]:
        yield f"Warning: {warning}"
    for problem in shown.get("problems", ()):
        yield f"Problem: {problem}"


def _needs(service: Json) -> str:
    vram_mb = service.get("vram_mb")
    return "?" if vram_mb is None else format_bytes(vram_mb * MIB)


def _budget(assignment: Json | None) -> str:
    budget_gb = assignment["vram_budget_override"] if assignment else None
    return "-" if budget_gb is None else f"{budget_gb:g} GB"


def _change(change: Json | None) -> str:
    if change is None:
        return ""
    texts = [_indices(each) if each else "" for each in (change["before"], change["after"])]
    before, after = (f"GPU {text}" if text else "not pinned" for text in texts)
    return f"{before} -> {after}" if before != after else change["reason"] or "other budget"


def _filled(gpu: Json, assignments: Sequence[Json], services: Mapping[str, Json]) -> str:
    placed = [each for each in assignments if str(gpu["index"]) in _indices(each).split(",")]
    need_mb = sum(
        _takes_mb(each, services.get(each["service"], {})) / (1 + len(each["more_gpus"])) for each in placed
    )
    count = format_count(len(placed), "service")
    others, total = gpu["vram_occupied_mb"] * MIB, gpu["vram_total_mb"] * MIB
    return (
        f"GPU {gpu['index']} {gpu['name']}: {count}, {format_bytes(round(need_mb * MIB))}; "
        f"{format_bytes(others)} others', of {format_bytes(total)}"
    )


def _takes_mb(assignment: Json, service: Json) -> float:
    """Return the memory that a service will use: its budget, else its need."""
    budget_gb = assignment["vram_budget_override"]
    return (service.get("vram_mb") or 0) if budget_gb is None else budget_gb * GIB / MIB


def _compact(assignment: Json) -> str:
    budget_gb = assignment["vram_budget_override"]
    return f"{assignment['service']}={_indices(assignment) or 'none'}" + (
        "" if budget_gb is None else f":{budget_gb:g}"
    )


def _indices(assignment: Json) -> str:
    gpus = (assignment, *assignment["more_gpus"])
    return ",".join(str(gpu["gpu_index"]) for gpu in gpus if gpu["gpu_index"] is not None)


def _terminal_width() -> int:
    return shutil.get_terminal_size((80, 24)).columns


_CONTAINER_COLUMNS: Final[Sequence[Column[Json]]] = (
    Column("SERVICE", lambda each: each["service"]),
    Column("CONTAINER", lambda each: (each["container_id"] or "-")[:12]),
    Column(
        "STATE",
        lambda each: _HEALTH[each["healthy"]] if each["running"] else "not running",
    ),
    Column("GPU", lambda each: where(each["assignment"], ())),
    Column("BUDGET", lambda each: _budget(each["assignment"]), right=True),
)
_HISTORY_COLUMNS: Final[Sequence[Column[Json]]] = (
    Column("NUMBER", lambda each: str(each["number"]), right=True),
    Column("SAVED", lambda each: moment(each["saved_at"])),
    Column("STRATEGY", lambda each: each["strategy"]),
    Column(
        "APPLY", lambda each: each["apply"]["state"].replace("_", " ") if each["apply"] else "never applied"
    ),
    Column("ASSIGNMENTS", lambda each: " ".join(map(_compact, each["assignments"])), min_width=_MIN_WIDTH),
)
