"""Machines on paper: a folder for their files, real programs that answer as told, cards behind a stand-in."""

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import pynvml

from cotenant.clock import ManualClock
from cotenant.config.configuration import Configuration
from cotenant.doctor.findings import Level, Observation
from cotenant.doctor.host_context import HostContext
from cotenant.domain.devices import Inventory
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.nvml import NvmlProbe
from tests.support.gpus.fake_nvml import PaperCard, StandInNvml

TWO_CARDS = ("GPU-aaaa", "GPU-bbbb")


@dataclass
class SickCard(PaperCard):
    """A card with everything that NVML tells of its health."""

    persistence: int = pynvml.NVML_FEATURE_ENABLED
    uncorrected: int = 0
    rows: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    retired_pending: int = 0
    width: int = 16
    width_most: int = 16
    generation: int = 4
    generation_most: int = 4
    performance_state: int = 8
    temperature: int = 45
    reasons: int = 0


def _rows(card: SickCard) -> tuple[int, int, int, int]:
    if card.rows is None:
        raise pynvml.NVMLError_NotSupported()
    return card.rows


HEALTH: dict[str, Callable[..., Any]] = {
    "nvmlDeviceGetPersistenceMode": lambda card: card.persistence,
    "nvmlDeviceGetTotalEccErrors": lambda card, kind, counter: card.uncorrected,
    "nvmlDeviceGetRemappedRows": _rows,
    "nvmlDeviceGetRetiredPagesPendingStatus": lambda card: card.retired_pending,
    "nvmlDeviceGetCurrPcieLinkWidth": lambda card: card.width,
    "nvmlDeviceGetMaxPcieLinkWidth": lambda card: card.width_most,
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda card: card.generation,
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda card: card.generation_most,
    "nvmlDeviceGetPerformanceState": lambda card: card.performance_state,
    "nvmlDeviceGetTemperature": lambda card, sensor: card.temperature,
    "nvmlDeviceGetCurrentClocksEventReasons": lambda card: card.reasons,
}


class HealthNvml(StandInNvml):
    """The stand-in library with the functions that tell of health besides."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvmlClocks"):
            return getattr(pynvml, name)
        answer = HEALTH.get(name)
        if answer is None:
            return super().__getattr__(name)

        def query(handle: SickCard, *arguments: Any) -> Any:
            assert self.sessions >= 1, "a query outside of a session"
            if name in handle.refuses:
                raise handle.refuses[name]
            return answer(handle, *arguments)

        return query


def machine(folder: Path, *cards: PaperCard, **changes: Any) -> HostContext:
    """Return a machine with these cards and with no program but those in `folder/bin`."""
    (folder / "root").mkdir(exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "state").mkdir(exist_ok=True)
    for name in ("proc", "dev", "sys"):
        (folder / "root" / name).mkdir(exist_ok=True)
    path = str(folder / "bin")
    inventory = _inventory(folder, cards)
    host = HostContext(
        state_dir=folder / "state",
        root=folder / "root",
        environ={"PATH": path, "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe")},
        find=partial(which, path=path),
        inventory=lambda: inventory,
        nvml=HealthNvml(*cards),
        configuration=Configuration(),
    )
    return replace(host, run=_running_from(folder, host), **changes)


def program(folder: Path, name: str, script: str) -> None:
    """Put a program on the machine's PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def write(folder: Path, absolute: str, content: str) -> None:
    """Write a file of the machine."""
    path = folder / "root" / absolute.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def levels(findings: Iterable[Observation]) -> list[Level]:
    return [finding.level for finding in findings]


def only(findings: Iterable[Observation], level: Level) -> Observation:
    """Return the one finding of that level."""
    (found,) = [finding for finding in findings if finding.level is level]
    return found


def _inventory(folder: Path, cards: tuple[PaperCard, ...]) -> Inventory:
    clock = ManualClock()
    if not cards:
        return HostProbe(clock).inventory()
    return NvmlProbe(clock, StandInNvml(*cards), devices=folder / "root" / "dev").inventory()


def _running_from(folder: Path, host: HostContext) -> Any:
    def run(argv: Any, within_s: float) -> Any:
        return host.run((str(folder / "bin" / argv[0]), *argv[1:]), within_s)

    return run
