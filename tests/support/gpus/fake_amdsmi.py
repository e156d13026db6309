"""AMD cards on paper behind the functions of `amdsmi`: its names, its dictionaries, its errors.

The shapes are those of amdsmi 7.0.2: memory in bytes or whole MiB, `N/A` for what is unknown, and one
exception class for each kind of failure.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

MIB = 1024**2
NOT_SUPPORTED, DRIVER_NOT_LOADED = 2, 34


class AmdSmiException(Exception):
    """As the module's base class."""


class AmdSmiLibraryException(AmdSmiException):
    """As the module's, which tells a status of the library."""

    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS - stood in"


class AmdSmiMemoryType(IntEnum):
    """As the module's."""

    VRAM = 0
    VIS_VRAM = 1
    GTT = 2


class AmdSmiTemperatureType(IntEnum):
    """As the module's."""

    EDGE = 0
    HOTSPOT = 1
    JUNCTION = 1
    VRAM = 2


class AmdSmiClkType(IntEnum):
    """As the module's."""

    SYS = 0
    GFX = 0


class AmdSmiTemperatureMetric(IntEnum):
    """As the module's."""

    CURRENT = 0


class AmdSmiVramType(IntEnum):
    """As the module's."""

    UNKNOWN = 0
    HBM2 = 2
    DDR5 = 13
    GDDR6 = 22
    LPDDR5 = 31


def process(pid: int, vram: int, name: str = "llama-server") -> dict[str, Any]:
    """Return what the module tells of a process."""
    return {
        "name": name,
        "pid": pid,
        "mem": vram,
        "engine_usage": {"gfx": 0, "enc": 0},
        "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": vram},
        "cu_occupancy": "N/A",
    }


@dataclass
class AmdCard:
    """A card; `refuses` maps a function's name to the error that it raises."""

    hip_uuid: str = "GPU-1122334455667788"
    hip_id: int | str = 0
    name: str = "AMD Instinct MI210"
    total: int = 65520 * MIB
    used: int = 10 * MIB
    gtt: int = 0
    gtt_used: int = 0
    vram_type: int = AmdSmiVramType.HBM2
    bdf: str = "0000:63:00.0"
    uuid: str = "11ff740f-0000-1000-8022-334455667788"
    bandwidth: int | str = 1638
    processes: list[Any] = field(default_factory=list)
    activity: int | str = 37
    temperature: int = 41
    power: int | str = 88
    refuses: dict[str, Exception] = field(default_factory=dict)


class StandInAmdsmi:
    """An `amdsmi` whose driver knows the given cards; `lacks` are functions that its version is without."""

    AmdSmiException = AmdSmiException
    AmdSmiMemoryType = AmdSmiMemoryType
    AmdSmiVramType = AmdSmiVramType
    AmdSmiTemperatureType = AmdSmiTemperatureType
    AmdSmiTemperatureMetric = AmdSmiTemperatureMetric
    AmdSmiClkType = AmdSmiClkType

    def __init__(
        self,
        *cards: AmdCard,
        refuses: dict[str, Exception] | None = None,
        lacks: frozenset[str] = frozenset(),
    ) -> None:
        self.cards = cards
        self.refuses = refuses or {}
        self.lacks = lacks
        self.sessions = 0
        self.opened = 0

    def __getattr__(self, name: str) -> Any:
        answer = ANSWERS.get(name)
        if answer is None or name in self.lacks:
            raise AttributeError(name)

        def query(card: AmdCard, *arguments: Any) -> Any:
            assert self.sessions == 1, "a query outside of a session"
            if name in card.refuses:
                raise card.refuses[name]
            return answer(card, *arguments)

        return query

    def amdsmi_init(self) -> None:
        self._answer("amdsmi_init")
        self.sessions += 1
        self.opened += 1

    def amdsmi_shut_down(self) -> None:
        self.sessions -= 1

    def amdsmi_get_processor_handles(self) -> list[AmdCard]:
        self._answer("amdsmi_get_processor_handles")
        return list(self.cards)

    def _answer(self, name: str) -> None:
        if name in self.refuses:
            raise self.refuses[name]


def _of_kind(vram: int, gtt: int, kind: AmdSmiMemoryType) -> int:
    if not isinstance(kind, AmdSmiMemoryType):
        raise AmdSmiException(kind)
    return {AmdSmiMemoryType.VRAM: vram, AmdSmiMemoryType.GTT: gtt}.get(kind, 0)


ANSWERS: dict[str, Callable[..., Any]] = {
    "amdsmi_get_gpu_enumeration_info": lambda card: {
        "drm_render": 128,
        "drm_card": 0,
        "hsa_id": 1,
        "hip_id": card.hip_id,
        "hip_uuid": card.hip_uuid,
    },
    "amdsmi_get_gpu_device_uuid": lambda card: card.uuid,
    "amdsmi_get_gpu_device_bdf": lambda card: card.bdf,
    "amdsmi_get_gpu_asic_info": lambda card: {
        "market_name": card.name,
        "vendor_name": "Advanced Micro Devices Inc. [AMD/ATI]",
        "target_graphics_version": "gfx90a",
        "num_compute_units": 104,
    },
    "amdsmi_get_gpu_memory_total": lambda card, kind: _of_kind(card.total, card.gtt, kind),
    "amdsmi_get_gpu_memory_usage": lambda card, kind: _of_kind(card.used, card.gtt_used, kind),
    "amdsmi_get_gpu_vram_usage": lambda card: {
        "vram_total": card.total // MIB,
        "vram_used": card.used // MIB,
    },
    "amdsmi_get_gpu_vram_info": lambda card: {
        "vram_type": card.vram_type,
        "vram_vendor": "SAMSUNG",
        "vram_size": card.total // MIB,
        "vram_bit_width": 4096,
        "vram_max_bandwidth": card.bandwidth,
    },
    "amdsmi_get_gpu_driver_info": lambda card: {
        "driver_name": "amdgpu",
        "driver_version": "6.12.12",
        "driver_date": "2015/01/01 00:00",
    },
    "amdsmi_get_gpu_process_list": lambda card: list(card.processes),
    "amdsmi_get_gpu_activity": lambda card: {
        "gfx_activity": card.activity,
        "umc_activity": 0,
        "mm_activity": "N/A",
    },
    "amdsmi_get_temp_metric": lambda card, sensor, metric: card.temperature,
    "amdsmi_get_clock_info": lambda card, kind: {
        "clk": 1700,
        "min_clk": 500,
        "max_clk": 1700,
        "clk_locked": "N/A",
        "clk_deep_sleep": "N/A",
    },
    "amdsmi_get_power_info": lambda card: {
        "socket_power": card.power,
        "current_socket_power": card.power,
        "average_socket_power": "N/A",
        "power_limit": 300,
    },
}
