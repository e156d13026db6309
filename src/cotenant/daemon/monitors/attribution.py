"""What Readings do not tell of by themselves: whose child a process is, what sleeps, what a hub holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cotenant.concurrency.process_groups import group_of
from cotenant.domain.devices import DeviceId, Inventory
from cotenant.domain.residencies import ResidencyId


@dataclass(frozen=True, slots=True)
class Beside:
    """Memory of devices that is held for us by no process of a residency's engine, in bytes.

    `asleep` are groups of processes whose engine sleeps: what they hold is ours to take back at any time, so
    nobody else's. `hub` is what a hub holds for each residency. `hub_foreign` is what hubs hold for others,
    on devices whose Reading does not show it.
    """

    asleep: frozenset[int] = frozenset()
    hub: Mapping[ResidencyId, Mapping[DeviceId, int]] = field(default_factory=dict)
    hub_foreign: Mapping[DeviceId, int] = field(default_factory=dict)


NOTHING = Beside()


def with_children(inventory: Inventory, engines: Mapping[int, ResidencyId]) -> dict[int, ResidencyId]:
    """Return `engines` with the processes that hold memory and are of an engine's group."""
    found = dict(engines)
    for pid in _pids(inventory):
        leader = group_of(pid)
        if pid not in found and leader is not None and leader in engines:
            found[pid] = engines[leader]
    return found


def _pids(inventory: Inventory) -> Iterator[int]:
    for reading in inventory.readings.values():
        for process in reading.processes or ():
            yield process.pid
