"""Runs all checks at once. One that fails or hangs is reported and does not affect the others."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.doctor import cards, containers, files, known_flaws, machine, machines
from cotenant.doctor.findings import Area, Finding, Observation, unknown
from cotenant.doctor.host_context import HostContext

WITHIN_S: Final = 4.5
"""The time limit of all checks together."""
WITHIN_WITH_CONTAINERS_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Check:
    """A check: what it is about, its name, and the function that runs it."""

    area: Area
    name: str
    run: Callable[[HostContext], Iterable[Observation]]


CHECKS: Final = (
    Check(Area.DRIVER, "the driver", cards.driver),
    Check(Area.CARDS, "the cards", cards.readings),
    Check(Area.CARDS, "the cards' health", cards.health),
    Check(Area.CARDS, "the kernel's log", machine.faults),
    Check(Area.CARDS, "free memory in pieces", files.fragmentation),
    Check(Area.SHARING, "compute modes", cards.compute_modes),
    Check(Area.SHARING, "other processes on the cards", cards.foreign_processes),
    Check(Area.SHARING, "MPS", cards.control_daemons),
    Check(Area.ENGINES, "engine builds", cards.builds),
    Check(Area.ENGINES, "known flaws of engines", known_flaws.known_flaws),
    Check(Area.CONTAINERS, "docker", containers.docker),
    Check(Area.CONTAINERS, "podman", containers.podman),
    Check(Area.CONTAINERS, "compose", containers.compose),
    Check(Area.CONTAINERS, "NVIDIA's container toolkit", containers.toolkit),
    Check(Area.CONTAINERS, "CDI specifications", containers.cdi),
    Check(Area.CONTAINERS, "Apptainer", containers.apptainer),
    Check(Area.CONTAINERS, "a container with a GPU", containers.trial),
    Check(Area.CONTAINERS, "the services' containers", containers.services),
    Check(Area.MACHINE, "killed processes", machine.killed_processes),
    Check(Area.MACHINE, "memory", machine.memory),
    Check(Area.MACHINE, "disks", machine.disks),
    Check(Area.MACHINE, "limits", machine.limits),
    Check(Area.MACHINE, "the clock", machine.clock),
    Check(Area.NODES, "Ray", machines.ray),
    Check(Area.NODES, "the other machines", machines.machines),
    Check(Area.FILES, "the configuration", files.configuration),
    Check(Area.FILES, "the port", files.port),
    Check(Area.FILES, "files of state", files.state),
    Check(Area.FILES, "keys", files.keys),
)


_OF_THE_DAEMON: Final = {
    files.configuration,
    files.fragmentation,
    files.keys,
    files.port,
    containers.services,
    containers.trial,
    machines.ray,
    machines.machines,
}
MACHINE_CHECKS: Final = tuple(check for check in CHECKS if check.run not in _OF_THE_DAEMON)
"""Those about a machine that runs engines for a daemon on another one."""


def run_checks(
    host: HostContext, checks: Sequence[Check] = CHECKS, *, within_s: float = WITHIN_S
) -> tuple[Finding, ...]:
    """Run all checks in parallel and return their findings, in the order of the checks.

    Threads of checks that hang are abandoned: they end with the process, and their programs at their own time
    limits.
    """
    done: queue.SimpleQueue[tuple[Check, tuple[Observation, ...]]] = queue.SimpleQueue()

    def work(check: Check) -> None:
        try:
            found = tuple(check.run(host))
        except Exception as error:
            found = (unknown(f"{check.name} could not be checked: {type(error).__name__}: {error}"),)
        done.put((check, found))

    for check in checks:
        threading.Thread(target=work, args=(check,), name=check.name, daemon=True).start()
    found: dict[Check, tuple[Observation, ...]] = {}
    deadline = time.monotonic() + within_s
    while len(found) < len(checks):
        try:
            check, observations = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[check] = observations
    for check in checks:
        late = f"{check.name} could not be checked: no answer within {within_s:g} s"
        found.setdefault(check, (unknown(late, "A driver or a program that hangs also delays engines."),))
    return tuple(
        Finding(each.level, each.seen, each.matters, each.fix, area=check.area)
        for check in checks
        for each in found[check]
    )
