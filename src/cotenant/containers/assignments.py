"""`gpu-assignments.yml`: what was assigned, for people to look at and to recover from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cotenant.containers.compose_yaml import read_compose_text
from cotenant.containers.override import header, yaml_key
from cotenant.domain.errors import ComposeFileError
from cotenant.domain.services import Assignment, SavedConfiguration, Strategy

ASSIGNMENTS_NAME: Final = "gpu-assignments.yml"


@dataclass(frozen=True, slots=True)
class AssignmentsFile:
    """What such a file says; `at` is Unix seconds."""

    at: float
    strategy: Strategy
    assignments: tuple[Assignment, ...]


def render_assignments(configuration: SavedConfiguration) -> str:
    """Return the file of a configuration."""
    at = datetime.fromtimestamp(configuration.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        header(configuration)
        + f"\ngenerated_at: '{at}'\nstrategy: {configuration.strategy}\n"
        + _entries(configuration.assignments)
    )


def _entries(assignments: Sequence[Assignment]) -> str:
    if not assignments:
        return "assignments: {}\n"
    lines = [f"  {yaml_key(each.service)}: {_entry(each)}" for each in assignments]
    return "\n".join(["assignments:", *lines]) + "\n"


def _entry(each: Assignment) -> str:
    return f"{{ gpu: {_number(each.gpu_index)}, vram_budget: {_number(each.vram_budget_gb)} }}"


def read_assignments(path: Path) -> AssignmentsFile:
    """Read such a file back. Raises ComposeFileError, which names what is wrong with it."""
    root = read_compose_text(path).root
    try:
        at = datetime.strptime(str(root["generated_at"]), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return AssignmentsFile(
            at.timestamp(),
            Strategy(root["strategy"]),
            tuple(_assignment(str(name), entry) for name, entry in (root["assignments"] or {}).items()),
        )
    except KeyError as error:
        raise _unreadable(path, f"{error.args[0]} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, " ".join(str(error).split())) from None


def _assignment(name: str, entry: Any) -> Assignment:
    gpu, budget = entry["gpu"], entry.get("vram_budget")
    if gpu is not None and (isinstance(gpu, bool) or not isinstance(gpu, int) or gpu < 0):
        raise ValueError(f"the gpu of {name} is no index")
    if budget is not None and not (isinstance(budget, (int, float)) and math.isfinite(budget) and budget > 0):
        raise ValueError(f"the vram_budget of {name} is no number of GB")
    return Assignment(name, gpu, vram_budget_gb=None if budget is None else float(budget))


def _unreadable(path: Path, what: str) -> ComposeFileError:
    return ComposeFileError(
        f"{path}: it is no file of assignments: {what}", hint="Save the configuration again."
    )


def _number(value: float | None) -> str:
    return "null" if value is None else json.dumps(value)
