"""What a run of the daemon gets, and how it reports its start."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cotenant.analysis.calibration import Comparison
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.watch import Change
from cotenant.daemon.core.settings import DaemonOptions
from cotenant.domain.devices import Inventory
from cotenant.domain.placements import Placement, Refusal
from cotenant.interfaces import Engine, GpuProbe


class StartReporter(Protocol):
    """Shows the user how the start of `serve` proceeds. The methods are called in this order."""

    def planned(self, entry: ModelEntry, result: Placement | Refusal) -> None:
        """Show the plan of the model of `serve MODEL`, whether it fits or not."""

    def loaded(self, engine: Engine, load_s: float, rows: tuple[Comparison, ...]) -> None:
        """Compare the planned bytes of the model of `serve MODEL` with those that its engine reports."""

    def serving(self, address: str, configuration: Configuration) -> None:
        """Show the address: requests are answered from now on."""


@dataclass(frozen=True, slots=True)
class DaemonInputs:
    """What to serve and on what.

    `alone` is the one model of `serve MODEL`: its plan is shown, it must load, and it is never unloaded.
    `reread` reads the configuration again; None if there is no file. `examine` checks the machine for a
    configuration, in a thread; None if that is not available.
    """

    configuration: Configuration
    options: DaemonOptions
    probe: GpuProbe
    inventory: Inventory
    alone: ModelEntry | None = None
    reread: Callable[[Change], Configuration] | None = None
    examine: Callable[[Configuration], Mapping[str, object]] | None = None


AfterReady = Callable[[str], Coroutine[Any, Any, None]]
