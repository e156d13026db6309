"""GPU configuration as tables for people, from the daemon's JSON."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from cotenant.domain.units import GIB, MIB, format_bytes, format_duration

_LEAST: Final = 8
"""Characters that a column keeps however narrow the terminal is."""

Json = Mapping[str, Any]


def configuration_lines(shown: Json) -> Iterator[str]:
    """Tell which service is where, and what should be known."""
    yield f"Strategy: {shown['strategy']}   Saved: {_saved(shown)}   Applied: {_number(shown['applied'])}"
    assigned = {each["service"]: each for each in shown["assignments"]}
    rows = [
        (
            service["name"] + ("" if service["enabled"] else " (off)"),
            service["model"] or "-",
            _needs(service),
            where(assigned.get(service["name"]), shown["gpus"]),
            _budget(assigned.get(service["name"])),
        )
        for service in shown["services"]
    ]
    yield from table(
        ("SERVICE", "MODEL", "NEEDS", "GPU", "BUDGET"), rows, right=("NEEDS", "BUDGET"), shrink="MODEL"
    )
    if not rows:
        yield "no services"
    yield from _notes(shown)
    if shown["changes"]:
        names = ", ".join(change["service"] for change in shown["changes"])
        yield f"Not applied yet: {names}. `cotenant services apply` does it."


def preview_lines(preview: Json, shown: Json) -> Iterator[str]:
    """Tell what a strategy would assign, how that differs from what is applied, and how full GPUs get."""
    yield f"Strategy: {preview['strategy']}"
    services = {service["name"]: service for service in shown["services"]}
    changes = {change["service"]: change for change in preview["diff"]}
    rows = [
        (
            each["service"],
            _needs(services.get(each["service"], {})),
            where(each, shown["gpus"]),
            _budget(each),
            _change(changes.get(each["service"])),
        )
        for each in preview["assignments"]
    ]
    yield from table(
        ("SERVICE", "NEEDS", "GPU", "BUDGET", "CHANGE"), rows, right=("NEEDS", "BUDGET"), shrink="GPU"
    )
    for gpu in shown["gpus"]:
        yield _filled(gpu, preview["assignments"], services)
    yield from _notes(preview)
    if not preview["diff"]:
        yield "No difference from what is applied."


def apply_lines(apply: Json | None) -> Iterator[str]:
    """Tell how an apply stands and how far each of its services is."""
    if apply is None:
        yield "Nothing was applied yet."
        return
    yield apply_sentence(apply)
    width = max((len(each["service"]) for each in apply["services"]), default=0)
    for each in apply["services"]:
        yield f"  {progress_line(each, width)}"


def apply_sentence(apply: Json) -> str:
    """Tell how an apply stands in one line."""
    began = datetime.fromisoformat(apply["started_at"])
    if apply["finished_at"] is None:
        when = f"begun {moment(apply['started_at'])}"
    else:
        took_s = (datetime.fromisoformat(apply["finished_at"]) - began).total_seconds()
        when = f"took {format_duration(max(0.0, took_s))}, ended {moment(apply['finished_at'])}"
    said = f": {apply['message']}" if apply["message"] else ""
    return f"Apply {apply['number']} {apply['state'].replace('_', ' ')} ({when}){said}"


def progress_line(progress: Json, width: int = 0) -> str:
    """Tell how far one service is."""
    where_to = "" if progress["gpu_index"] is None else f" on GPU {progress['gpu_index']}"
    said = f": {progress['message']}" if progress["message"] else ""
    return f"{progress['service']:<{width}}  {progress['state'].replace('_', ' ')}{where_to}{said}"


def container_lines(containers: Sequence[Json]) -> Iterator[str]:
    """Tell how the containers do, and with which assignment each was created."""
    rows = [
        (
            each["service"],
            (each["container_id"] or "-")[:12],
            _health(each),
            where(each["assignment"], ()),
            _budget(each["assignment"]),
        )
        for each in containers
    ]
    if rows:
        yield from table(("SERVICE", "CONTAINER", "STATE", "GPU", "BUDGET"), rows, right=("BUDGET",))
    else:
        yield "No containers are known: no container engine answers, or no service was ever created."


def history_lines(history: Sequence[Json]) -> Iterator[str]:
    """List configurations, newest first."""
    rows = [
        (
            str(each["number"]),
            moment(each["saved_at"]),
            each["strategy"],
            each["apply"]["state"].replace("_", " ") if each["apply"] else "never applied",
            " ".join(_compact(assignment) for assignment in each["assignments"]),
        )
        for each in history
    ]
    if rows:
        yield from table(
            ("NUMBER", "SAVED", "STRATEGY", "APPLY", "ASSIGNMENTS"),
            rows,
            right=("NUMBER",),
            shrink="ASSIGNMENTS",
        )
    else:
        yield "Nothing was saved yet."


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    shrink: str | None = None,
) -> Iterator[str]:
    """Render columns; the one called `shrink` is cut where lines would be wider than the terminal."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if shrink is not None:
        at = head.index(shrink)
        over = sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size((80, 24)).columns
        widths[at] = max(min(widths[at], _LEAST), widths[at] - max(0, over))
    for row in (head, *rows):
        cells = (
            _cut(cell, width).rjust(width) if name in right else _cut(cell, width).ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        )
        yield "  ".join(cells).rstrip()


def where(assignment: Json | None, gpus: Sequence[Json]) -> str:
    """Name the GPU of an assignment: `1 RTX A400`."""
    if assignment is None:
        return "-"
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


def _saved(shown: Json) -> str:
    saved = shown["saved"]
    return "never" if saved is None else f"{saved['number']}, {moment(saved['saved_at'])}"


def _number(saved: Json | None) -> str:
    return "never" if saved is None else str(saved["number"])


def _needs(service: Json) -> str:
    vram_mb = service.get("vram_mb")
    return "?" if vram_mb is None else format_bytes(vram_mb * MIB)


def _budget(assignment: Json | None) -> str:
    budget_gb = assignment["vram_budget_override"] if assignment else None
    return "-" if budget_gb is None else f"{budget_gb:g} GB"


def _change(change: Json | None) -> str:
    if change is None:
        return ""
    before, after = _place(change["before"]), _place(change["after"])
    return f"{before} -> {after}" if before != after else "other budget"


def _place(assignment: Json | None) -> str:
    if assignment is None or assignment["gpu_index"] is None:
        return "not pinned"
    return f"GPU {assignment['gpu_index']}"


def _filled(gpu: Json, assignments: Sequence[Json], services: Mapping[str, Json]) -> str:
    placed = [each for each in assignments if each["gpu_index"] == gpu["index"]]
    need_mb = sum(_takes_mb(each, services.get(each["service"], {})) for each in placed)
    count = "1 service" if len(placed) == 1 else f"{len(placed)} services"
    others, total = gpu["vram_occupied_mb"] * MIB, gpu["vram_total_mb"] * MIB
    return (
        f"GPU {gpu['index']} {gpu['name']}: {count}, {format_bytes(round(need_mb * MIB))}; "
        f"{format_bytes(others)} others', of {format_bytes(total)}"
    )


def _takes_mb(assignment: Json, service: Json) -> float:
    """Return what a service will take: its budget, else what it needs."""
    budget_gb = assignment["vram_budget_override"]
    return (service.get("vram_mb") or 0) if budget_gb is None else budget_gb * GIB / MIB


def _health(container: Json) -> str:
    if not container["running"]:
        return "not running"
    return {True: "healthy", False: "unhealthy", None: "running"}[container["healthy"]]


def _compact(assignment: Json) -> str:
    index, budget_gb = assignment["gpu_index"], assignment["vram_budget_override"]
    told = "none" if index is None else str(index)
    return f"{assignment['service']}={told}" + ("" if budget_gb is None else f":{budget_gb:g}")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
