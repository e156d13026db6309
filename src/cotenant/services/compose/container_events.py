"""Reads the event streams of podman and docker (`events`), one JSON object a line."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

_SERVICE: Final = "com.docker.compose.service"
_KILLED: Final = 137
_NORMAL_EXITS: Final = frozenset([0, 143])
"""Exit statuses of a container that ended normally or on SIGTERM."""


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
    """Read a line of `events`; None for irrelevant events and for anything else.

    Docker reports an out-of-memory kill before the exit that it causes; podman reports only the exit, with
    status 137, as for a plain `kill -9`: that is `KILLED`.
    """
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict):
        return None
    actor = _mapping(event.get("Actor"))
    labels = _mapping(event.get("Attributes")) or _mapping(actor.get("Attributes"))
    action = str(event.get("Status") or event.get("Action") or event.get("status") or "")
    name = labels.get(_SERVICE) or event.get("Name") or labels.get("name")
    identity = event.get("ID") or actor.get("ID") or event.get("id")
    if not isinstance(name, str) or not isinstance(identity, str):
        return None
    if action == "oom":
        return ContainerEvent(ContainerChange.OUT_OF_MEMORY, name, identity)
    status = event.get("ContainerExitCode", labels.get("exitCode", labels.get("containerExitCode")))
    if action not in ("died", "die") or not re.fullmatch("[0-9]{1,5}", str(status)):
        return None
    if int(status) in _NORMAL_EXITS:
        return None
    change = ContainerChange.KILLED if int(status) == _KILLED else ContainerChange.FAILED
    return ContainerEvent(change, name, identity)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
