"""What a run of the daemon is given, and whom it tells."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cotenant.analysis.calibration import Comparison
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.watch import Change
from cotenant.daemon.core.settings import DaemonOptions
from cotenant.domain.devices import Inventory
from cotenant.domain.placements import Placement, Refusal
from cotenant.interfaces import Engine, GpuProbe


class Announcer(Protocol):
    """Told how serving goes, in the order of these methods."""

    def planned(self, entry: ModelEntry, result: Placement | Refusal) -> None:
        """Tell the plan of a model that is served by itself, fitting or not."""
        ...

    def loaded(self, engine: Engine, load_s: float, rows: tuple[Comparison, ...]) -> None:
        """Tell planned bytes against those that the engine reports, of a model served by itself."""
        ...

    def serving(self, address: str, configuration: Configuration) -> None:
        """Tell the address: requests are answered from now on."""
        ...


@dataclass(frozen=True, slots=True)
class DaemonInputs:
    """What to serve and on what.

    `alone` is the one model of `serve MODEL`: it is planned aloud, must load, and is never unloaded. `reread`
    reads the configuration again; None where there is no file to read. `examine` looks the machine over for a
    configuration, in a thread; None where nobody can.
    """

    configuration: Configuration
    options: DaemonOptions
    probe: GpuProbe
    inventory: Inventory
    alone: ModelEntry | None = None
    reread: Callable[[Change], Configuration] | None = None
    examine: Callable[[Configuration], Mapping[str, object]] | None = None


AfterReady = Callable[[str], Awaitable[None]]
