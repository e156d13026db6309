"""`gpu-assignments.yml`: what was assigned, for people to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cotenant.services.compose.override import header, yaml_key
from cotenant.services.model import Assignment, SavedConfiguration

ASSIGNMENTS_NAME: Final = "gpu-assignments.yml"


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


def _number(value: float | None) -> str:
    return "null" if value is None else json.dumps(value)
