"""Which engine GPU memory belongs to, if a Reading alone does not show it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cotenant.concurrency.process_groups import group_of, leader_of
from cotenant.domain.devices import DeviceId, Inventory
from cotenant.domain.residencies import ResidencyId


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """GPU memory that belongs to our engines but not to a process of a residency, in bytes.

    `asleep` are the process groups of sleeping engines: their memory can be reclaimed at any time, so it is
    not foreign. `ollama` is what an Ollama daemon holds for each residency. `ollama_foreign_bytes` is what
    Ollama daemons hold for other clients, on devices whose Reading does not show it.
    """

    asleep: frozenset[int] = frozenset()
    ollama: Mapping[ResidencyId, Mapping[DeviceId, int]] = field(default_factory=dict)
    ollama_foreign_bytes: Mapping[DeviceId, int] = field(default_factory=dict)


NO_USAGE = EngineUsage()


def with_child_processes(inventory: Inventory, engines: Mapping[int, ResidencyId]) -> dict[int, ResidencyId]:
    """Return `engines` (by pid) with every GPU process of an engine's process group or family."""
    found = dict(engines)
    for reading in inventory.readings.values():
        for process in reading.processes or ():
            leader = None if process.pid in found else leader_of(process.pid, engines)
            if leader is not None:
                found[process.pid] = engines[leader]
    return found


def sleeping_processes(
    inventory: Inventory, groups: Collection[int], before: Collection[int], engines: Collection[int]
) -> frozenset[int]:
    """Return the GPU processes of sleeping engines that are not among `engines`.

    `groups` are their process groups, `before` their processes in the last inventory: one that has ended has
    no group any more, and the driver may still list it.
    """
    return frozenset(
        process.pid
        for reading in inventory.readings.values()
        for process in reading.processes or ()
        if process.pid not in engines
        and (process.pid in before or process.pid in groups or group_of(process.pid) in groups)
    )
