"""NVIDIA GPUs, through NVML (`nvidia-ml-py`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant.clock import Clock
from cotenant.domain.devices import ComputeMode, Device, DeviceId, DeviceKind, GpuProcess, Inventory, Reading
from cotenant.domain.pci import normalise_bus_id
from cotenant.domain.vendors import InventorySource, Vendor
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.nvml_query import answer, attempt, nvml_library

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


@dataclass(frozen=True, slots=True)
class _Memory:
    total: int | None = None
    used: int | None = None
    free: int | None = None
    problem: str | None = None


class NvmlProbe:
    """Finds NVIDIA's GPUs and MIG slices; without any, the RAM of this machine.

    Each query may fail on its own: what one card refuses is unknown, and everything else is still reported.
    The session with the driver stays open between inventories, since opening one can take a second per card
    if no other process uses the driver; it is opened again after the driver as a whole refused.

    Tests replace `library`, the module `pynvml`, and `devices`, the folder `/dev`.
    """

    def __init__(
        self,
        clock: Clock,
        library: Any = None,
        *,
        host: HostProbe | None = None,
        devices: Path = Path("/dev"),
    ) -> None:
        self._clock = clock
        self._library = library
        self._host = host or HostProbe(clock)
        self._devices = devices
        self._open = False

    def inventory(self) -> Inventory:
        """Measure every device now. Raises nothing: errors are among the problems."""
        nvml = self._nvml
        try:
            if not self._open:
                nvml.nvmlInit()
                self._open = True
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self._close()
            return self._host.inventory(self._refused(error))
        found: list[tuple[Device, Reading]] = []
        problems: list[str] = []
        for index in range(count):
            found.extend(self._card(index, problems))
        if not found:
            return self._host.inventory(tuple(problems))
        return Inventory(
            InventorySource.NVML,
            devices=tuple(device for device, _ in found),
            readings={device.id: reading for device, reading in found},
            driver_version=self._ask(nvml.nvmlSystemGetDriverVersion),
            cuda_version=_cuda_version(self._ask(nvml.nvmlSystemGetCudaDriverVersion)),
            problems=tuple(problems),
        )

    @property
    def _nvml(self) -> Any:
        self._library = nvml_library(self._library)
        return self._library

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._ask(self._nvml.nvmlShutdown)

    def _refused(self, error: Exception) -> tuple[str, ...]:
        kind = type(error).__name__
        if kind == "NVMLError_LibraryNotFound":
            return (_NO_LIBRARY,) if (self._devices / "nvidiactl").exists() else ()
        return (_WHOLE_MACHINE.get(kind, f"NVIDIA's driver refuses: {error}."),)

    def _ask(self, query: Callable[..., Any], *arguments: Any) -> Any:
        return answer(self._nvml, query, *arguments)

    def _card(self, index: int, problems: list[str]) -> Iterator[tuple[Device, Reading]]:
        nvml = self._nvml
        handle, error = attempt(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if error is None:
            uuid, error = attempt(nvml, nvml.nvmlDeviceGetUUID, handle)
        if error is not None:
            problems.append(f"GPU {index} does not answer ({error}): it is left out; see `dmesg` for why.")
            return
        mig = self._ask(nvml.nvmlDeviceGetMigMode, handle)
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
        nvml = self._nvml
        mode = self._compute_mode(parent)
        for number in range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0):
            handle = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, number)
            uuid = None if handle is None else self._ask(nvml.nvmlDeviceGetUUID, handle)
            if uuid is None:
                continue
            memory = self._memory(handle)
            # The bandwidth stays unknown: the driver reports the card's, not a slice's share of it.
            device = Device(
                DeviceId(uuid),
                DeviceKind.MIG,
                name=self._ask(nvml.nvmlDeviceGetName, handle) or f"{card.name} MIG {number}",
                index=card.index,
                total_bytes=memory.total,
                pci_bus_id=card.pci_bus_id,
                compute_capability=card.compute_capability,
                parent_id=card.id,
                vendor=Vendor.NVIDIA,
            )
            yield device, self._reading(handle, device, memory, mode)

    def _device(self, handle: Any, uuid: DeviceId, index: int, memory: _Memory) -> Device:
        nvml = self._nvml
        pci = self._ask(nvml.nvmlDeviceGetPciInfo, handle)
        capability = self._ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        return Device(
            uuid,
            DeviceKind.GPU,
            name=self._ask(nvml.nvmlDeviceGetName, handle) or "of unknown name",
            index=index,
            total_bytes=memory.total,
            pci_bus_id=None if pci is None else normalise_bus_id(pci.busId),
            compute_capability=None if capability is None else tuple(capability),
            bandwidth_bytes_per_s=self._bandwidth(handle),
            vendor=Vendor.NVIDIA,
        )

    def _reading(self, handle: Any, device: Device, memory: _Memory, mode: ComputeMode | None) -> Reading:
        nvml = self._nvml
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        return Reading(
            device.id,
            at=self._clock.now(),
            used_bytes=memory.used,
            free_bytes=memory.free,
            compute_mode=mode,
            processes=self._processes(handle),
            utilisation_percent=None if rates is None else rates.gpu,
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            problem=memory.problem,
        )

    def _memory(self, handle: Any) -> _Memory:
        nvml = self._nvml
        info, error = attempt(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        reserved = 0 if info is None else info.reserved
        if info is None:
            info, error = attempt(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        if isinstance(error, nvml.NVMLError_NotSupported):
            return _Memory(
                problem="the driver does not report its memory, as for a GPU that shares the host's RAM"
            )
        if info is None or info.total == 0:
            return _Memory(problem=f"the driver does not report its memory ({error or '0 bytes in all'})")
        # Drivers differ on whether `used` includes what they reserve; this value does not, as in nvidia-smi.
        return _Memory(info.total, max(0, info.total - info.free - reserved), info.free)

    def _compute_mode(self, handle: Any) -> ComputeMode | None:
        nvml = self._nvml
        modes = {
            nvml.NVML_COMPUTEMODE_DEFAULT: ComputeMode.DEFAULT,
            nvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: ComputeMode.EXCLUSIVE_PROCESS,
            nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: ComputeMode.EXCLUSIVE_PROCESS,
            nvml.NVML_COMPUTEMODE_PROHIBITED: ComputeMode.PROHIBITED,
        }
        return modes.get(self._ask(nvml.nvmlDeviceGetComputeMode, handle))

    def _bandwidth(self, handle: Any) -> int | None:
        nvml = self._nvml
        clock_mhz = self._ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM)
        bus_bits = self._ask(nvml.nvmlDeviceGetMemoryBusWidth, handle)
        if not clock_mhz or not bus_bits:
            return None
        # Two transfers per clock: NVML's memory clock is half of the data rate, for GDDR and for HBM.
        return int(2 * clock_mhz * 1_000_000 * bus_bits // 8)

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        nvml = self._nvml
        lists = [
            self._ask(query, handle)
            for query in (
                nvml.nvmlDeviceGetComputeRunningProcesses,
                nvml.nvmlDeviceGetGraphicsRunningProcesses,
                nvml.nvmlDeviceGetMPSComputeRunningProcesses,
            )
        ]
        if all(listed is None for listed in lists):
            return None
        # Each list has all that a process holds, so a process on two lists counts once.
        used: dict[int, int | None] = {}
        for process in (process for listed in lists for process in listed or ()):
            known = [count for count in (used.get(process.pid), process.usedGpuMemory) if count is not None]
            used[process.pid] = max(known, default=None)
        return tuple(
            GpuProcess(pid, self._ask(nvml.nvmlSystemGetProcessName, pid) or None, used[pid])
            for pid in sorted(used)
        )


def _cuda_version(number: int | None) -> str | None:
    """Render NVML's 12040 as `12.4`."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"
