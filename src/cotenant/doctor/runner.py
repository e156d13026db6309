"""All checks at once, each by itself: one that fails or hangs says so and spoils nothing else."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.doctor import (
    cards,
    configuration,
    container_runs,
    containers,
    engines,
    files,
    kernel,
    machine,
    mps,
)
from cotenant.doctor.findings import Area, Finding, unknown
from cotenant.doctor.host_context import Patient

WITHIN_S: Final = 4.5
"""How long a whole examination takes at most."""
WITHIN_WITH_CONTAINERS_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at."""

    area: Area
    name: str
    look: Callable[[Patient], Iterable[Finding]]


CHECKS: Final = (
    Check(Area.DRIVER, "the driver", cards.driver),
    Check(Area.CARDS, "the cards' health", cards.health),
    Check(Area.CARDS, "the kernel's log", kernel.faults),
    Check(Area.SHARING, "compute modes", cards.compute_modes),
    Check(Area.SHARING, "other processes on the cards", cards.foreign_processes),
    Check(Area.SHARING, "MPS", mps.control_daemons),
    Check(Area.ENGINES, "engine builds", engines.builds),
    Check(Area.CONTAINERS, "docker", containers.docker),
    Check(Area.CONTAINERS, "podman", containers.podman),
    Check(Area.CONTAINERS, "compose", containers.compose),
    Check(Area.CONTAINERS, "NVIDIA's container toolkit", containers.toolkit),
    Check(Area.CONTAINERS, "CDI specifications", containers.cdi),
    Check(Area.CONTAINERS, "Apptainer", containers.apptainer),
    Check(Area.CONTAINERS, "a container with a GPU", container_runs.trial),
    Check(Area.CONTAINERS, "the services' containers", container_runs.services),
    Check(Area.MACHINE, "memory", machine.memory),
    Check(Area.MACHINE, "disks", machine.disks),
    Check(Area.MACHINE, "limits", machine.limits),
    Check(Area.MACHINE, "the clock", machine.clock),
    Check(Area.FILES, "the configuration", configuration.configuration),
    Check(Area.FILES, "the port", configuration.port),
    Check(Area.FILES, "files of state", files.state),
    Check(Area.FILES, "keys", files.keys),
)


def examine(
    patient: Patient, checks: Sequence[Check] = CHECKS, *, within_s: float = WITHIN_S
) -> tuple[Finding, ...]:
    """Make all checks side by side and return what they found, in their order.

    Threads of checks that hang are left behind: they end with the process, and their programs by their own
    limits.
    """
    done: queue.SimpleQueue[tuple[int, tuple[Finding, ...]]] = queue.SimpleQueue()
    for number, check in enumerate(checks):
        work = (number, check, patient, done)
        threading.Thread(target=_look, args=work, name=check.name, daemon=True).start()
    found: dict[int, tuple[Finding, ...]] = {}
    deadline = time.monotonic() + within_s
    while len(found) < len(checks):
        try:
            number, findings = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[number] = findings
    return tuple(
        finding
        for number, check in enumerate(checks)
        for finding in found.get(number, (_late(check, within_s),))
    )


def _look(
    number: int,
    check: Check,
    patient: Patient,
    done: queue.SimpleQueue[tuple[int, tuple[Finding, ...]]],
) -> None:
    try:
        findings = tuple(check.look(patient))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        findings = (unknown(check.area, f"{check.name} could not be checked: {told}"),)
    done.put((number, findings))


def _late(check: Check, within_s: float) -> Finding:
    return unknown(
        check.area,
        f"{check.name} could not be checked: no answer within {within_s:g} s",
        "A driver or a program that hangs holds up engines too.",
    )
