"""NVIDIA GPUs, through NVML (`nvidia-ml-py`)."""

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cotenant.clock import Clock
from cotenant.domain.devices import (
    ComputeMode,
    Device,
    DeviceId,
    DeviceKind,
    GpuProcess,
    Inventory,
    Reading,
    normalise_bus_id,
)
from cotenant.domain.vendors import InventorySource, Vendor
from cotenant.hardware.gpus.host import HostProbe

_WHOLE_MACHINE = {
    "NVMLError_DriverNotLoaded": (
        "NVIDIA's driver is installed but not loaded, so no GPU can be used: run `sudo modprobe nvidia`."
    ),
    "NVMLError_LibRmVersionMismatch": (
        "NVIDIA's loaded driver and its library are of different versions, as after an update: "
        "reboot, or unload and load the driver's kernel modules."
    ),
    "NVMLError_NoPermission": (
        "this user may not open NVIDIA's devices, so no GPU can be used: check the rights of /dev/nvidia*."
    ),
    "NVMLError_Unknown": (
        "NVIDIA's driver does not answer (Unknown Error), so no GPU can be used: "
        "if this is a container that lost its GPUs, recreate it; else see `dmesg` for the driver's reason."
    ),
}
_NO_LIBRARY = (
    "this machine has NVIDIA devices but not libnvidia-ml.so.1, so no GPU can be used: "
    "in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,utility."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Memory:
    total: int | None = None
    used: int | None = None
    free: int | None = None
    problem: str | None = None
    unified: bool = False


class NvmlProbe:
    """Finds NVIDIA's GPUs and MIG slices; without any, the RAM of this machine.

    Each query may fail on its own: what one card refuses is unknown, and everything else is still reported.
    The session with the driver stays open between inventories, since opening one can take a second per card
    if no other process uses the driver; it is opened again after the driver as a whole refused.

    Tests replace `library`, the module `pynvml`, `devices`, the folder `/dev`, and `host`.
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
        self._nvml = Nvml(library)
        self._ask = self._nvml.ask
        self._host = host or HostProbe(clock)
        self._devices = devices
        self._open = False

    def inventory(self) -> Inventory:
        """Measure every device now. Raises nothing: errors are among the problems."""
        if not self._nvml.is_installed:
            return self._host.inventory(self._without_library())
        nvml = self._nvml.library
        try:
            if not self._open:
                nvml.nvmlInit()
                self._open = True
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            if self._open:
                self._open = False
                self._ask("Shutdown")
            return self._host.inventory(self._refused(error))
        found: list[tuple[Device, Reading]] = []
        problems: list[str] = []
        for index in range(count):
            found.extend(self._card(index, problems))
        if not found:
            return self._host.inventory(tuple(problems))
        # 12040 is 12.4.
        cuda = self._ask("SystemGetCudaDriverVersion")
        return Inventory(
            InventorySource.NVML,
            devices=tuple(device for device, _ in found),
            readings={device.id: reading for device, reading in found},
            driver_version=self._ask("SystemGetDriverVersion"),
            cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            problems=tuple(problems),
        )

    def _refused(self, error: Exception) -> tuple[str, ...]:
        kind = type(error).__name__
        if kind == "NVMLError_LibraryNotFound":
            return self._without_library()
        return (_WHOLE_MACHINE.get(kind, f"NVIDIA's driver refuses: {error}."),)

    def _without_library(self) -> tuple[str, ...]:
        return (_NO_LIBRARY,) if (self._devices / "nvidiactl").exists() else ()

    def _card(self, index: int, problems: list[str]) -> Iterator[tuple[Device, Reading]]:
        nvml = self._nvml.library
        handle, error = self._nvml.attempt("DeviceGetHandleByIndex", index)
        if error is None:
            uuid, error = self._nvml.attempt("DeviceGetUUID", handle)
        if error is not None:
            problems.append(f"GPU {index} does not answer ({error}): it is left out; see `dmesg` for why.")
            return
        mig = self._ask("DeviceGetMigMode", handle)
        if mig is None or mig[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            memory = self._memory(handle)
            card = self._device(handle, DeviceId(uuid), index, memory)
            yield card, self._reading(handle, card, memory, self._compute_mode(handle))
            return
        card = self._device(handle, DeviceId(uuid), index, _Memory())
        slices = list(self._slices(handle, card))
        if not slices:
            problems.append(
                f"{card.label} is in MIG mode without a slice that this user may see: "
                f"create one with `sudo nvidia-smi mig -i {index} -cgi PROFILE -C`, or end MIG mode with "
                f"`sudo nvidia-smi -i {index} -mig 0`."
            )
        yield from slices

    def _slices(self, parent: Any, card: Device) -> Iterator[tuple[Device, Reading]]:
        mode = self._compute_mode(parent)
        for number in range(self._ask("DeviceGetMaxMigDeviceCount", parent) or 0):
            handle = self._ask("DeviceGetMigDeviceHandleByIndex", parent, number)
            uuid = None if handle is None else self._ask("DeviceGetUUID", handle)
            if uuid is None:
                continue
            memory = self._memory(handle)
            # The bandwidth stays unknown: the driver reports the card's, not a slice's share of it.
            device = replace(
                card,
                id=DeviceId(uuid),
                kind=DeviceKind.MIG,
                name=self._ask("DeviceGetName", handle) or f"{card.name} MIG",
                total_bytes=memory.total,
                bandwidth_bytes_per_s=None,
                parent_id=card.id,
                slice_number=number,
            )
            yield device, self._reading(handle, device, memory, mode)

    def _device(self, handle: Any, uuid: DeviceId, index: int, memory: _Memory) -> Device:
        pci = self._ask("DeviceGetPciInfo", handle)
        capability = self._ask("DeviceGetCudaComputeCapability", handle)
        return Device(
            uuid,
            DeviceKind.GPU,
            name=self._nvml.name(handle),
            index=index,
            total_bytes=memory.total,
            pci_bus_id=None if pci is None else normalise_bus_id(pci.busId),
            compute_capability=None if capability is None else tuple(capability),
            bandwidth_bytes_per_s=self._bandwidth(handle),
            vendor=Vendor.NVIDIA,
            unified=memory.unified,
        )

    def _reading(self, handle: Any, device: Device, memory: _Memory, mode: ComputeMode | None) -> Reading:
        nvml = self._nvml.library
        rates = self._ask("DeviceGetUtilizationRates", handle)
        milliwatts = self._ask("DeviceGetPowerUsage", handle)
        return Reading(
            device.id,
            at=self._clock.now(),
            used_bytes=memory.used,
            free_bytes=memory.free,
            compute_mode=mode,
            processes=self._processes(handle),
            utilisation_percent=None if rates is None else rates.gpu,
            temperature_c=self._ask("DeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            clock_mhz=self._ask("DeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            problem=memory.problem,
        )

    def _memory(self, handle: Any) -> _Memory:
        nvml = self._nvml.library
        info, error = self._nvml.attempt("DeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2)
        reserved = 0 if info is None else info.reserved
        if info is None:
            info, error = self._nvml.attempt("DeviceGetMemoryInfo", handle)
        if isinstance(error, nvml.NVMLError_NotSupported):
            # As on GB10 and on Jetson, whose GPUs have no memory but the host's.
            host = self._host.memory()
            total, free = host.total_bytes, host.available_bytes
            if total is None or free is None:
                return _Memory(problem="it shares the host's RAM, whose size the kernel does not report")
            return _Memory(total, total - free, free, unified=True)
        if info is None or info.total == 0:
            return _Memory(problem=f"the driver does not report its memory ({error or '0 bytes in all'})")
        # Drivers differ on whether `used` includes what they reserve; this value does not, as in nvidia-smi.
        return _Memory(info.total, max(0, info.total - info.free - reserved), info.free)

    def _compute_mode(self, handle: Any) -> ComputeMode | None:
        nvml = self._nvml.library
        modes = {
            nvml.NVML_COMPUTEMODE_DEFAULT: ComputeMode.DEFAULT,
            nvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: ComputeMode.EXCLUSIVE_PROCESS,
            nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: ComputeMode.EXCLUSIVE_PROCESS,
            nvml.NVML_COMPUTEMODE_PROHIBITED: ComputeMode.PROHIBITED,
        }
        return modes.get(self._ask("DeviceGetComputeMode", handle))

    def _bandwidth(self, handle: Any) -> int | None:
        nvml = self._nvml.library
        clock_mhz = self._ask("DeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM)
        bus_bits = self._ask("DeviceGetMemoryBusWidth", handle)
        if not clock_mhz or not bus_bits:
            return None
        # Two transfers per clock: NVML's memory clock is half of the data rate, for GDDR and for HBM.
        return int(2 * clock_mhz * 1_000_000 * bus_bits // 8)

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        kinds = ("Compute", "Graphics", "MPSCompute")
        lists = [self._ask(f"DeviceGet{kind}RunningProcesses", handle) for kind in kinds]
        if all(listed is None for listed in lists):
            return None
        # Each list has all that a process holds, so a process on two lists counts once.
        used: dict[int, int | None] = {}
        for process in (process for listed in lists for process in listed or ()):
            known = [count for count in (used.get(process.pid), process.usedGpuMemory) if count is not None]
            used[process.pid] = max(known, default=None)
        return tuple(
            GpuProcess(pid, self._ask("SystemGetProcessName", pid) or None, used[pid]) for pid in sorted(used)
        )


class Nvml:
    """The module `pynvml` as `library`, or its replacement in tests."""

    def __init__(self, replacement: Any = None) -> None:
        self._library = replacement

    @property
    def library(self) -> Any:
        """The module, imported when it is first used: that takes 40 ms."""
        if self._library is None:
            self._library = import_module("pynvml")
        return self._library

    @property
    def is_installed(self) -> bool:
        """Whether this machine has NVIDIA's library; one without it need not import `pynvml` to know."""
        if self._library is None:
            try:
                ctypes.CDLL("libnvidia-ml.so.1")
            except OSError:
                return False
        return True

    def attempt(self, query: str, *arguments: Any) -> tuple[Any, Exception | None]:
        """Return the answer of the function `nvml<query>`, or None and why the driver refuses it."""
        nvml = self.library
        try:
            return getattr(nvml, f"nvml{query}")(*arguments), None
        # An old driver lacks the function (NVMLLibraryMismatchError is no NVMLError); a name cut in the
        # middle of a character does not decode.
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError, UnicodeDecodeError) as error:
            _log.debug("nvml%s: %s", query, error)
            return None, error

    def ask(self, query: str, *arguments: Any) -> Any:
        """Return the answer of the function `nvml<query>`, or None if the driver refuses it."""
        return self.attempt(query, *arguments)[0]

    def name(self, handle: Any) -> str:
        """Return a card's name."""
        return self.ask("DeviceGetName", handle) or "of unknown name"
