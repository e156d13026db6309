"""AMD GPUs, through ROCm's `amdsmi`."""

import contextlib
import io
import logging
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from cotenant.clock import Clock
from cotenant.domain.devices import (
    Device,
    DeviceId,
    DeviceKind,
    GpuProcess,
    Inventory,
    Reading,
    normalise_bus_id,
)
from cotenant.domain.units import MIB
from cotenant.domain.vendors import InventorySource, Vendor
from cotenant.hardware.gpus.host import HostProbe

_log = logging.getLogger(__name__)

_UNIQUE: Final = re.compile(r"GPU-[0-9a-fA-F]{8,}")
"""A UUID. ROCr names every card without a unique id `GPU-XX`."""
_MODULES: Final = ("DDR", "LPDDR")
"""The memory of a whole machine, which an APU has no other than."""
_NO_LIBRARY: Final = (
    "this machine has AMD's compute device /dev/kfd but no usable `amdsmi`, so no GPU can be used: install "
    "ROCm's amd-smi-lib, and its Python package of the same version (`pip install amdsmi`)."
)


class AmdProbe:
    """Finds AMD's GPUs; without any, the RAM of this machine.

    Each query may fail on its own: what one card refuses is unknown, and everything else is still reported.
    A machine without AMD's driver is not a problem. The session with the driver stays open between
    inventories, and is opened again after it failed.

    Tests replace `library`, the module `amdsmi`, `devices`, the folder `/dev`, and `host`.
    """

    def __init__(
        self,
        clock: Clock,
        library: Any = None,
        *,
        devices: Path = Path("/dev"),
        host: HostProbe | None = None,
    ) -> None:
        self._clock = clock
        self._library = library
        self._host = host or HostProbe(clock)
        self._devices = devices
        self._open = False

    def inventory(self) -> Inventory:
        """Measure every device now. Raises nothing: errors are among the problems."""
        if self._library is None:
            self._library = _load()
        if self._library is None:
            return self._host.inventory((_NO_LIBRARY,) if self._present else ())
        if not self._open:
            _, error = self._try("amdsmi_init")
            if error is not None:
                return self._host.inventory(self._refused(error))
            self._open = True
        handles, error = self._try("amdsmi_get_processor_handles")
        if error is not None:
            self._open = False
            self._ask("amdsmi_shut_down")
            return self._host.inventory(self._refused(error))
        problems: list[str] = []
        found: dict[DeviceId, tuple[Device, Reading]] = {}
        for position, handle in enumerate(handles or ()):
            card = self._card(handle, position)
            if card is None or card[0].id in found:
                problems.append(
                    f"AMD GPU {position} does not say which it is: it is left out; see `dmesg` for why."
                )
            else:
                found[card[0].id] = card
        if not found:
            return self._host.inventory(tuple(problems))
        drivers = (self._ask("amdsmi_get_gpu_driver_info", handle) for handle in handles)
        versions = (self._field(driver, "driver_version") for driver in drivers)
        driver = next((version for version in versions if version is not None), None)
        return Inventory(
            InventorySource.AMDSMI,
            devices=tuple(sorted((device for device, _ in found.values()), key=lambda card: card.index or 0)),
            readings={id_: reading for id_, (_, reading) in found.items()},
            driver_version=None if driver is None else str(driver),
            problems=tuple(problems),
        )

    @property
    def _present(self) -> bool:
        return (self._devices / "kfd").exists()

    def _refused(self, error: Exception) -> tuple[str, ...]:
        return (f"AMD's driver refuses: {_text(error)}.",) if self._present else ()

    def _try(self, name: str, *arguments: Any) -> tuple[Any, Exception | None]:
        # Any exception: apart from its own errors the module raises AttributeError for a function that the
        # library is too old for, ValueError for invalid numbers, and UnicodeDecodeError for an invalid name.
        try:
            return getattr(self._library, name)(*arguments), None
        except Exception as error:
            _log.debug("%s: %s", name, _text(error))
            return None, error

    def _ask(self, name: str, *arguments: Any) -> Any:
        return self._try(name, *arguments)[0]

    def _constant(self, kind: str, name: str) -> Any:
        return getattr(getattr(self._library, kind, None), name, None)

    @staticmethod
    def _field(answer: Any, name: str) -> Any:
        """Return one field; None if it is missing or `N/A`, which the module writes if it is unknown."""
        value = answer.get(name) if isinstance(answer, dict) else None
        return None if value in ("N/A", "") else value

    def _number(self, answer: Any, name: str) -> int | None:
        value = self._field(answer, name)
        return value if isinstance(value, int) and value >= 0 else None

    def _card(self, handle: Any, position: int) -> tuple[Device, Reading] | None:
        """Measure a card; None if it does not say which it is."""
        numbers = self._ask("amdsmi_get_gpu_enumeration_info", handle)
        index = self._number(numbers, "hip_id")
        index = position if index is None else index
        unique = str(self._field(numbers, "hip_uuid") or "")
        bus_id = self._ask("amdsmi_get_gpu_device_bdf", handle)
        if _UNIQUE.fullmatch(unique):
            id_, runtime_name = DeviceId(unique), unique
        else:
            # If ROCr has no UUID for a card, its number names it, which may change between boots.
            uuid = self._ask("amdsmi_get_gpu_device_uuid", handle) or bus_id
            if not uuid:
                return None
            id_, runtime_name = DeviceId(f"AMD-{uuid}"), str(index)
        vram = self._ask("amdsmi_get_gpu_vram_info", handle)
        total, used = self._memory(handle)
        shared = self._shared_memory(handle, vram, total)
        total, used = shared or (total, used)
        bandwidth = self._number(vram, "vram_max_bandwidth")
        name = self._field(self._ask("amdsmi_get_gpu_asic_info", handle), "market_name")
        device = Device(
            id_,
            DeviceKind.GPU,
            name=str(name or "of unknown name"),
            index=index,
            total_bytes=total,
            pci_bus_id=normalise_bus_id(bus_id) if isinstance(bus_id, str) else None,
            bandwidth_bytes_per_s=bandwidth * 10**9 if bandwidth else None,
            vendor=Vendor.AMD,
            runtime_name=runtime_name,
            render_node=self._number(numbers, "drm_render"),
            unified=shared is not None,
        )
        graphics = self._constant("AmdSmiClkType", "GFX")
        power = self._ask("amdsmi_get_power_info", handle)
        current = self._number(power, "current_socket_power")
        reading = Reading(
            id_,
            at=self._clock.now(),
            used_bytes=used,
            free_bytes=None if total is None or used is None else max(0, total - used),
            processes=self._processes(handle),
            problem="the driver does not report its memory" if total is None else None,
            utilisation_percent=self._number(self._ask("amdsmi_get_gpu_activity", handle), "gfx_activity"),
            temperature_c=self._temperature(handle),
            power_w=current if current is not None else self._number(power, "average_socket_power"),
            clock_mhz=self._number(self._ask("amdsmi_get_clock_info", handle, graphics), "clk"),
        )
        return device, reading

    def _temperature(self, handle: Any) -> int | None:
        metric = self._constant("AmdSmiTemperatureMetric", "CURRENT")
        # Data-centre cards have no edge sensor, and small cards no hotspot sensor.
        for sensor in ("EDGE", "HOTSPOT", "JUNCTION"):
            kind = self._constant("AmdSmiTemperatureType", sensor)
            value = self._ask("amdsmi_get_temp_metric", handle, kind, metric)
            if isinstance(value, int):
                return value
        return None

    def _shared_memory(self, handle: Any, vram: Any, carved_bytes: int | None) -> tuple[int, int] | None:
        """Return total and used bytes of the host's RAM as an APU may map it (GTT); None for other cards.

        Linux allocates there if that is more than what the firmware carved out, which is no RAM of the host.
        """
        number = self._number(vram, "vram_type")
        names = getattr(self._library, "AmdSmiVramType", None)
        kind = next((each.name for each in names or () if each.value == number), "")
        if not kind.startswith(_MODULES):
            return None
        gtt = self._ask("amdsmi_get_gpu_memory_total", handle, self._constant("AmdSmiMemoryType", "GTT"))
        host = self._host.memory()
        if not isinstance(gtt, int) or gtt <= (carved_bytes or 0):
            return None
        if host.total_bytes is None or host.available_bytes is None:
            return None
        mapped = self._ask("amdsmi_get_gpu_memory_usage", handle, self._constant("AmdSmiMemoryType", "GTT"))
        left = gtt - mapped if isinstance(mapped, int) else gtt
        total = min(gtt, host.total_bytes)
        return total, total - max(0, min(left, host.available_bytes, total))

    def _memory(self, handle: Any) -> tuple[int | None, int | None]:
        """Return total and used bytes, both or neither; the exact ones, else those in whole MiB."""
        kind = self._constant("AmdSmiMemoryType", "VRAM")
        total = self._ask("amdsmi_get_gpu_memory_total", handle, kind)
        used = self._ask("amdsmi_get_gpu_memory_usage", handle, kind)
        if not total or not isinstance(used, int):
            usage = self._ask("amdsmi_get_gpu_vram_usage", handle)
            total_mib, used_mib = self._number(usage, "vram_total"), self._number(usage, "vram_used")
            if not total_mib or used_mib is None:
                return None, None
            total, used = total_mib * MIB, used_mib * MIB
        return total, min(used, total)

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        listed = self._ask("amdsmi_get_gpu_process_list", handle)
        if not isinstance(listed, list) or not all(isinstance(process, dict) for process in listed):
            return None
        found: dict[int, GpuProcess] = {}
        for process in listed:
            pid = self._number(process, "pid")
            if pid is not None:
                used = self._number(process.get("memory_usage"), "vram_mem")
                found[pid] = GpuProcess(pid, self._field(process, "name"), used)
        return tuple(found[pid] for pid in sorted(found))


def _load() -> Any:
    """Import `amdsmi`; None if it or the library behind it is missing."""
    # If its library is missing, the module prints to standard output and raises an exception of its own.
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            return import_module("amdsmi")
    except Exception as error:
        _log.debug("amdsmi: %s %s", _text(error), printed.getvalue().strip())
        return None


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
