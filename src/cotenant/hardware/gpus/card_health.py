"""The condition of NVIDIA's cards, through NVML."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cotenant.hardware.gpus.nvml_query import answer, nvml_library

_SLOWDOWNS: Final = (
    ("nvmlClocksEventReasonHwThermalSlowdown", "too hot"),
    ("nvmlClocksEventReasonHwPowerBrakeSlowdown", "the power supply asks for it"),
    ("nvmlClocksEventReasonSwThermalSlowdown", "near its temperature limit"),
)


@dataclass(frozen=True, slots=True)
class CardHealth:
    """What a card reports about itself. Unknown or unsupported is None.

    `uncorrected_errors` counts memory errors since the driver was loaded. `repairs_pending`: damaged memory
    will be remapped at the next reset. `repairs_failed`: no spare memory is left for that. Links are PCIe.
    `performance_state` 0 is full speed; in every other state the driver lowers the links' generation.
    """

    index: int
    name: str
    persistence: bool | None = None
    uncorrected_errors: int | None = None
    repairs_pending: bool | None = None
    repairs_failed: bool | None = None
    link_width: int | None = None
    link_width_most: int | None = None
    link_generation: int | None = None
    link_generation_most: int | None = None
    performance_state: int | None = None
    temperature_c: int | None = None
    slowed_by: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The display name, like that of a Device."""
        return f"GPU {self.index} {self.name}"


def read_health(library: Any = None) -> tuple[CardHealth, ...]:
    """Ask every card; one that does not answer is left out. Tests replace `library`, the module `pynvml`."""
    nvml = nvml_library(library)
    reader = _Reader(nvml)
    nvml.nvmlInit()
    try:
        cards = [reader.card(index) for index in range(nvml.nvmlDeviceGetCount())]
    finally:
        answer(nvml, nvml.nvmlShutdown)
    return tuple(card for card in cards if card is not None)


class _Reader:
    """Asks for one fact at a time: what the driver refuses is unknown, and the rest is still read."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._ask = partial(answer, nvml)

    def card(self, index: int) -> CardHealth | None:
        nvml, ask = self._nvml, self._ask
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return None
        persistence = ask(nvml.nvmlDeviceGetPersistenceMode, handle)
        pending, failed = self._repairs(handle)
        return CardHealth(
            index=index,
            name=ask(nvml.nvmlDeviceGetName, handle) or "of unknown name",
            persistence=None if persistence is None else persistence == nvml.NVML_FEATURE_ENABLED,
            uncorrected_errors=ask(
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
            ),
            repairs_pending=pending,
            repairs_failed=failed,
            link_width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            link_width_most=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            link_generation=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            link_generation_most=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            performance_state=ask(nvml.nvmlDeviceGetPerformanceState, handle),
            temperature_c=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            slowed_by=self._slowdowns(handle),
        )

    def _repairs(self, handle: Any) -> tuple[bool | None, bool | None]:
        """Return whether repairs are pending and whether one failed; older cards retire pages instead."""
        rows = self._ask(self._nvml.nvmlDeviceGetRemappedRows, handle)
        if rows is not None:
            _, _, pending, failed = rows
            return bool(pending), bool(failed)
        pages = self._ask(self._nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        return (None if pages is None else bool(pages)), None

    def _slowdowns(self, handle: Any) -> tuple[str, ...]:
        reasons = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:
            return ()
        return tuple(text for name, text in _SLOWDOWNS if reasons & getattr(self._nvml, name, 0))
