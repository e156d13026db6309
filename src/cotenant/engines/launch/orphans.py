"""Engines in containers whose daemon is gone: found by their labels, and removed."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from cotenant.domain.launching import LauncherKind
from cotenant.engines.launch import container_supervisor
from cotenant.engines.launch.container import ENGINE_LABEL, MODEL_LABEL, OWNER_LABEL
from cotenant.engines.launch.container_owner import Owner
from cotenant.programs.run import run_program

_ANSWERS_WITHIN_S: Final = 10.0
_WITH_CONTAINERS: Final = tuple(kind for kind in LauncherKind if kind.traits.keeps_containers)
"""Those of Apptainer are children of their keeper, and end with it."""
_log = logging.getLogger(__name__)


def remove_leftovers(kinds: Iterable[LauncherKind] = _WITH_CONTAINERS) -> tuple[str, ...]:
    """Remove them from those container engines that are there; return their names. It takes a second.

    A container is one of them if its label names a process that has ended: the keeper of a killed daemon
    removes it as well, unless it was killed too. Those of living daemons are left alone.
    """
    removed: list[str] = []
    for kind in kinds:
        program = shutil.which(kind) if kind in _WITH_CONTAINERS else None
        for container in _ours([program]) if program else ():
            name = str(container.get("Name", "")).lstrip("/")
            labels = (container.get("Config") or {}).get("Labels") or {}
            running = bool((container.get("State") or {}).get("Running"))
            if (
                program
                and name
                and _left_behind(labels, running)
                and container_supervisor.remove([program], name)
            ):
                _log.warning(
                    "removed the container %s, in which a Cotenant that is gone ran %s",
                    name,
                    labels.get(MODEL_LABEL),
                )
                removed.append(name)
    return tuple(removed)


def _left_behind(labels: Mapping[str, str], running: bool) -> bool:
    owner = Owner.parse(labels.get(OWNER_LABEL, ""))
    # One that runs and is of another boot is of another machine, whose daemon cannot be seen.
    return owner is not None and (owner.gone or (owner.another_boot and not running))


def _ours(engine: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    listed = _ask([*engine, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={ENGINE_LABEL}"])
    for each in listed.split():
        # One by one: any may go while we look.
        told = _ask([*engine, "container", "inspect", each])
        yield from json.loads(told) if told else ()


def _ask(argv: Sequence[str]) -> str:
    done = run_program(argv, _ANSWERS_WITHIN_S, merge_errors=False)
    if done.problem is not None:
        _log.info("%s does not list its containers: %s", argv[0], done.problem)
    return done.output if done.ok else ""
