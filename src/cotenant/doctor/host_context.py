"""The machine to check, and the configuration that it is checked for."""

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cotenant.clock import SystemClock
from cotenant.config.configuration import Configuration
from cotenant.domain.devices import Device, DeviceKind, Inventory
from cotenant.domain.errors import CotenantError
from cotenant.domain.vendors import Vendor
from cotenant.hardware.gpus.inventory import probe
from cotenant.programs.run import Finished, run_program

Runner = Callable[[Sequence[str], float], Finished]


class Once:
    """Measures the devices once, at the first call, for all threads."""

    def __init__(self, measure: Callable[[], Inventory]) -> None:
        self._measure = measure
        self._lock = threading.Lock()
        self._found: Inventory | None = None

    def __call__(self) -> Inventory:
        """Return what was measured."""
        with self._lock:
            if self._found is None:
                self._found = self._measure()
            return self._found


def measure_devices() -> Inventory:
    """Measure this machine's own devices, whatever GPUs are described."""
    return probe(None, SystemClock()).inventory()


@dataclass(frozen=True, slots=True)
class HostContext:
    """The machine to check.

    `root` is the root of its file system, `run` runs a program, `find` finds one, `inventory` measures its
    devices, `nvml` replaces the module `pynvml`. `configuration` is what the daemon serves; None if there is
    none or `refusal` says why it cannot be read. `containers` allows running one, of `image` if given.
    """

    state_dir: Path
    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    run: Runner = run_program
    find: Callable[[str], str | None] = shutil.which
    inventory: Callable[[], Inventory] = field(default_factory=lambda: Once(measure_devices))
    nvml: Any = None
    configuration: Configuration | None = None
    refusal: CotenantError | None = None
    llama_server: Path | None = None
    containers: bool = False
    image: str | None = None

    def path(self, absolute: str) -> Path:
        """Return a path under the root."""
        return self.root / absolute.lstrip("/")

    def text(self, absolute: str) -> str | None:
        """Return the text of a file; None if it cannot be read."""
        try:
            return self.path(absolute).read_text(errors="replace")
        except OSError:
            return None

    @property
    def settings(self) -> Configuration:
        """What the daemon serves, or the defaults."""
        return self.configuration or Configuration()

    def cards(self) -> tuple[Device, ...]:
        """Return the GPUs and MIG slices."""
        return tuple(device for device in self.inventory().devices if device.kind is not DeviceKind.HOST)

    def nvidia_cards(self) -> tuple[Device, ...]:
        """Return the GPUs and MIG slices of NVIDIA."""
        return tuple(card for card in self.cards() if card.vendor is Vendor.NVIDIA)
