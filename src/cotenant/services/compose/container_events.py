"""What podman and docker tell of their containers as it happens (`events`), one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

_SERVICE: Final = "com.docker.compose.service"
_DIED: Final = frozenset(["died", "die"])
_KILLED: Final = 137
_ASKED: Final = frozenset([0, 143])
"""Exit statuses of a container that ended by itself or did as SIGTERM says."""


class ContainerChange(StrEnum):
    """What happened to a container."""

    OUT_OF_MEMORY = "out_of_memory"
    KILLED = "killed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """A container that ended. `name` is its compose service's, else its own."""

    change: ContainerChange
    name: str
    container_id: str


def events_command(engine: str) -> list[str]:
    """Return the command that follows events; `engine` is the program's name or path."""
    form = "json" if engine.rpartition("/")[2] == "podman" else "{{json .}}"
    return [engine, "events", "--filter", "type=container", "--format", form]


def read_event(line: str | bytes) -> ContainerEvent | None:
    """Read a line of `events`; None for what is of no concern, and for what is no event at all.

    Docker tells a kill for want of memory before the death by it; podman tells the death alone, with status
    137, which a plain `kill -9` has too: that is `KILLED`.
    """
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    actor = _mapping(told.get("Actor"))
    labels = _mapping(told.get("Attributes")) or _mapping(actor.get("Attributes"))
    action = str(told.get("Status") or told.get("Action") or told.get("status") or "")
    name = labels.get(_SERVICE) or told.get("Name") or labels.get("name")
    identity = told.get("ID") or actor.get("ID") or told.get("id")
    if not isinstance(name, str) or not isinstance(identity, str):
        return None
    if action == "oom":
        return ContainerEvent(ContainerChange.OUT_OF_MEMORY, name, identity)
    status = _number(told.get("ContainerExitCode", labels.get("exitCode", labels.get("containerExitCode"))))
    if action not in _DIED or status is None or status in _ASKED:
        return None
    change = ContainerChange.KILLED if status == _KILLED else ContainerChange.FAILED
    return ContainerEvent(change, name, identity)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
