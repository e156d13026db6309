"""Cards on paper behind the functions of `pynvml`, whose constants and error classes are the real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

MIB = 1024**2


@dataclass(frozen=True)
class Process:
    """What NVML tells of a process."""

    pid: int
    usedGpuMemory: int | None = None  # noqa: N815


@dataclass
class PaperCard:
    """A card or a MIG slice; `refuses` maps a function's name to the error that it raises."""

    uuid: str
    name: str = "NVIDIA GeForce RTX 3090"
    total: int = 24576 * MIB
    reserved: int = 300 * MIB
    used: int = 1000 * MIB
    bus_id: str = "00000000:01:00.0"
    capability: tuple[int, int] = (8, 6)
    mode: int = pynvml.NVML_COMPUTEMODE_DEFAULT
    utilisation: int = 37
    temperature: int = 61
    milliwatts: int = 214_500
    memory_clock_mhz: int = 9751
    bus_width_bits: int = 384
    compute: tuple[Process, ...] = ()
    graphics: tuple[Process, ...] = ()
    mps: tuple[Process, ...] = ()
    mig: tuple[PaperCard | None, ...] | None = None
    refuses: dict[str, Exception] = field(default_factory=dict)


class StandInNvml:
    """A `pynvml` whose driver knows the given cards; None is a card whose handle the driver refuses."""

    def __init__(
        self,
        *cards: PaperCard | None,
        names: dict[int, str] | None = None,
        refuses: dict[str, Exception] | None = None,
    ) -> None:
        self.cards = cards
        self.names = names or {}
        self.refuses = refuses or {}
        self.sessions = 0
        self.opened = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML") or name == "nvmlMemory_v2":
            return getattr(pynvml, name)
        answer = ANSWERS.get(name)
        if answer is None:
            raise AttributeError(name)

        def query(handle: PaperCard, *arguments: Any) -> Any:
            assert self.sessions == 1, "a query outside of a session"
            if name in handle.refuses:
                raise handle.refuses[name]
            return answer(handle, *arguments)

        return query

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer("nvmlInit")
        self.sessions += 1
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.sessions -= 1
        self._answer("nvmlShutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._answer("nvmlDeviceGetCount")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> PaperCard:  # noqa: N802
        card = self.cards[index]
        if card is None:
            raise pynvml.NVMLError_GpuIsLost()
        return card

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        self._answer("nvmlSystemGetDriverVersion")
        return "550.54.15"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 12040

    def nvmlSystemGetProcessName(self, pid: int) -> str:  # noqa: N802
        if pid not in self.names:
            raise pynvml.NVMLError_NotFound()
        return self.names[pid]

    def _answer(self, name: str) -> None:
        if name in self.refuses:
            raise self.refuses[name]


def _memory(card: PaperCard, version: int | None = None) -> SimpleNamespace:
    free = card.total - card.reserved - card.used
    if version is None:
        return SimpleNamespace(total=card.total, free=free, used=card.total - free)
    if "nvmlDeviceGetMemoryInfo_v2" in card.refuses:
        raise card.refuses["nvmlDeviceGetMemoryInfo_v2"]
    return SimpleNamespace(total=card.total, free=free, used=card.used, reserved=card.reserved)


def _mig_mode(card: PaperCard) -> list[int]:
    if card.mig is None:
        raise pynvml.NVMLError_NotSupported()
    return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]


def _mig_slice(card: PaperCard, index: int) -> PaperCard:
    found = (card.mig or ())[index]
    if found is None:
        raise pynvml.NVMLError_NotFound()
    return found


def _temperature(card: PaperCard, sensor: int) -> int:
    assert sensor == pynvml.NVML_TEMPERATURE_GPU
    return card.temperature


ANSWERS: dict[str, Callable[..., Any]] = {
    "nvmlDeviceGetUUID": lambda card: card.uuid,
    "nvmlDeviceGetName": lambda card: card.name,
    "nvmlDeviceGetPciInfo": lambda card: SimpleNamespace(busId=card.bus_id),
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetCudaComputeCapability": lambda card: card.capability,
    "nvmlDeviceGetComputeMode": lambda card: card.mode,
    "nvmlDeviceGetClockInfo": lambda card, kind: 1695,
    "nvmlDeviceGetMaxClockInfo": lambda card, kind: card.memory_clock_mhz,
    "nvmlDeviceGetMemoryBusWidth": lambda card: card.bus_width_bits,
    "nvmlDeviceGetComputeRunningProcesses": lambda card: list(card.compute),
    "nvmlDeviceGetGraphicsRunningProcesses": lambda card: list(card.graphics),
    "nvmlDeviceGetMPSComputeRunningProcesses": lambda card: list(card.mps),
    "nvmlDeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=card.utilisation, memory=12),
    "nvmlDeviceGetTemperature": _temperature,
    "nvmlDeviceGetPowerUsage": lambda card: card.milliwatts,
    "nvmlDeviceGetMigMode": _mig_mode,
    "nvmlDeviceGetMaxMigDeviceCount": lambda card: len(card.mig or ()),
    "nvmlDeviceGetMigDeviceHandleByIndex": _mig_slice,
}
