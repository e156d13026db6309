"""Finds the containers and processes of daemons that have ended, and removes them."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cotenant.domain.launching import LauncherKind
from cotenant.engines.launch import container_supervisor
from cotenant.engines.launch.container import ENGINE_LABEL, MODEL_LABEL, OWNER_LABEL
from cotenant.engines.process.marks import kill_orphans as kill_orphans
from cotenant.engines.process.owner import Owner
from cotenant.programs.run import run_program

_log = logging.getLogger(__name__)


def remove_orphaned_containers(kinds: Iterable[LauncherKind] = LauncherKind) -> tuple[str, ...]:
    """Remove them from the container engines that are installed; return their names. It takes a second.

    A container is an orphan if its label names a process that has ended. The supervisor of a killed daemon
    removes it too, unless the supervisor was killed as well. Containers of running daemons stay.
    """
    removed: list[str] = []
    for kind in kinds:
        # Containers of Apptainer are children of their supervisor, and end with it.
        program = shutil.which(kind) if kind.traits.keeps_containers else None
        if program is None:
            continue
        for container in _containers(program):
            name = str(container.get("Name", "")).lstrip("/")
            labels = (container.get("Config") or {}).get("Labels") or {}
            running = (container.get("State") or {}).get("Running")
            owner = Owner.parse(labels.get(OWNER_LABEL, ""))
            # A running container of another boot belongs to another machine, whose processes are not visible.
            if owner is None or not (owner.gone or (owner.another_boot and not running)):
                continue
            if name and container_supervisor.remove([program], name):
                _log.warning(
                    "removed the container %s of model %s, whose Cotenant has ended",
                    name,
                    labels.get(MODEL_LABEL),
                )
                removed.append(name)
    return tuple(removed)


def _containers(program: str) -> Iterator[Mapping[str, Any]]:
    listed = _ask([program, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={ENGINE_LABEL}"])
    for container_id in listed.split():
        # One at a time: a container may disappear meanwhile, and then the command fails.
        answer = _ask([program, "container", "inspect", container_id])
        yield from json.loads(answer) if answer else ()


def _ask(argv: Sequence[str]) -> str:
    done = run_program(argv, 10.0, merge_errors=False)
    if done.problem is not None:
        _log.info("%s does not list its containers: %s", argv[0], done.problem)
    return done.output if done.ok else ""
