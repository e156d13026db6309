"""The machine as the doctor may look at it, and what it is to be examined for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cotenant.clock import SystemClock
from cotenant.config.configuration import Configuration
from cotenant.domain.devices import Device, DeviceKind, Inventory
from cotenant.domain.errors import CotenantError
from cotenant.hardware.gpus.inventory import probe

_NVIDIA: Final = ("GPU-", "MIG-")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said. `problem` says why it gave no answer; its status is None then."""

    status: int | None
    output: str
    problem: str | None = None

    @property
    def worked(self) -> bool:
        """Whether it ended well."""
        return self.status == 0

    @property
    def reason(self) -> str:
        """The last line that it printed, or why there is none."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return self.problem or (lines[-1][:200] if lines else f"status {self.status}")


Runner = Callable[[Sequence[str], float], Answer]


def run_program(argv: Sequence[str], within_s: float) -> Answer:
    """Run a program in a process group of its own, and end the group if it takes longer than `within_s`."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", f"it cannot be started: {error.strerror}")
    with process:
        try:
            output, _ = process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return Answer(None, "", f"it did not answer within {within_s:.0f} s")
    return Answer(process.returncode, output.decode("utf-8", "replace"))


class Once:
    """Measures the devices when first asked, and not again, whoever asks."""

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
    """Measure this machine's own devices: described ones have no say in its health."""
    return probe(None, SystemClock()).inventory()


@dataclass(frozen=True, slots=True)
class Patient:
    """A machine under examination.

    `root` stands for the root of its files, `run` starts its programs, `find` finds them, `inventory`
    measures its devices, `nvml` stands in for the module `pynvml`. `configuration` is what is to be served,
    None where `refusal` says why it cannot be read or where there is none. `containers` allows running one,
    of `image` if given.
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
        """Return what a file holds; None if it cannot be read."""
        try:
            return self.path(absolute).read_text(errors="replace")
        except OSError:
            return None

    def cards(self) -> tuple[Device, ...]:
        """Return the GPUs and MIG slices."""
        return tuple(device for device in self.inventory().devices if device.kind is not DeviceKind.HOST)

    def nvidia_cards(self) -> tuple[Device, ...]:
        """Return NVIDIA's among them."""
        return tuple(card for card in self.cards() if card.id.startswith(_NVIDIA))
