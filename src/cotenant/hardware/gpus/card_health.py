"""The condition of NVIDIA's cards, through NVML."""

from dataclasses import dataclass
from typing import Any, Final

from cotenant.hardware.gpus.nvml import Nvml

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
    nvml = Nvml(library)
    nvml.library.nvmlInit()
    try:
        numbers = range(nvml.library.nvmlDeviceGetCount())
        handles = [(index, nvml.ask("DeviceGetHandleByIndex", index)) for index in numbers]
        return tuple(_card(nvml, index, handle) for index, handle in handles if handle is not None)
    finally:
        nvml.ask("Shutdown")


def _card(nvml: Nvml, index: int, handle: Any) -> CardHealth:
    """Ask for one fact at a time: what the driver refuses is unknown, and the rest is still read."""

    def ask(query: str, *arguments: str) -> Any:
        return nvml.ask(f"DeviceGet{query}", handle, *(getattr(nvml.library, each) for each in arguments))

    persistence, reasons = ask("PersistenceMode"), ask("CurrentClocksEventReasons") or 0
    rows = ask("RemappedRows")
    # Older cards retire pages instead.
    pending, failed = (ask("RetiredPagesPendingStatus"), None) if rows is None else rows[2:]
    return CardHealth(
        index=index,
        name=nvml.name(handle),
        persistence=None if persistence is None else persistence == nvml.library.NVML_FEATURE_ENABLED,
        uncorrected_errors=ask("TotalEccErrors", "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", "NVML_VOLATILE_ECC"),
        repairs_pending=None if pending is None else bool(pending),
        repairs_failed=None if failed is None else bool(failed),
        link_width=ask("CurrPcieLinkWidth"),
        link_width_most=ask("MaxPcieLinkWidth"),
        link_generation=ask("CurrPcieLinkGeneration"),
        link_generation_most=ask("MaxPcieLinkGeneration"),
        performance_state=ask("PerformanceState"),
        temperature_c=ask("Temperature", "NVML_TEMPERATURE_GPU"),
        slowed_by=tuple(text for name, text in _SLOWDOWNS if reasons & getattr(nvml.library, name, 0)),
    )
