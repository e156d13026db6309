"""What hosts of engines that are processes of ours are made of."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cotenant.domain.devices import DeviceId
from cotenant.engines.base.health import HealthRules
from cotenant.engines.process.log_folder import LogFolder
from cotenant.engines.process.slot_store import SlotStore


class Meter(Protocol):
    """Measures the memory that our processes hold."""

    async def held_bytes(self, group: int) -> int | None:
        """Return what a process group holds on all GPUs; None if the driver does not report it."""
        ...

    async def free_host_bytes(self) -> int | None:
        """Return the free host RAM; None if unknown."""
        ...


@dataclass(slots=True)
class HostInputs:
    """What hosts may need. `exclusive` are the cards that admit one process at a time.

    `llama_server` is the operator's program, which may change, `cuda_version` the driver's. `secrets` returns
    values that no engine gets of our environment, such as the keys of remote servers. `slots` has the saved
    slots, None if none are to be saved. Engines end with the lease that the file `lease` states, if there is
    one.
    """

    logs: LogFolder
    meter: Meter
    exclusive: Set[DeviceId] = frozenset()
    llama_server: Path | None = None
    cuda_version: str | None = None
    health: HealthRules = field(default_factory=HealthRules)
    secrets: Callable[[], frozenset[str]] = frozenset
    slots: SlotStore | None = None
    lease: Path | None = None
