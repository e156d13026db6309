"""On a machine with NVIDIA GPUs: against nvidia-smi and the CUDA driver."""

import os
import subprocess
import sys

import pytest

from cotenant.clock import SystemClock
from cotenant.domain.devices import (
    HOST_ID,
    Device,
    DeviceKind,
    Inventory,
    launch_environment,
    normalise_bus_id,
)
from cotenant.domain.units import MIB
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.hardware.gpus.host import HOST_NAME
from cotenant.hardware.gpus.nvml import NvmlProbe

pytestmark = pytest.mark.gpu

FIELDS = "uuid,index,name,pci.bus_id,memory.total,memory.used,memory.free,compute_cap,compute_mode"

COUNT_DEVICES = """
import ctypes, uuid
cuda = ctypes.CDLL("libcuda.so.1")
count, device, raw = ctypes.c_int(0), ctypes.c_int(), (ctypes.c_ubyte * 16)()
status = cuda.cuInit(0)
assert status in (0, 100), status
if status == 0:
    assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
for ordinal in range(count.value):
    assert cuda.cuDeviceGet(ctypes.byref(device), ordinal) == 0
    assert cuda.cuDeviceGetUuid(raw, device) == 0
    print(f"GPU-{uuid.UUID(bytes=bytes(raw))}")
"""


@pytest.fixture(scope="module")
def found() -> Inventory:
    return NvmlProbe(SystemClock()).inventory()


def cards(found: Inventory) -> list[Device]:
    whole = [device for device in found.devices if device.kind is DeviceKind.GPU]
    if not whole:
        pytest.skip("every card is in MIG mode")
    return whole


def test_the_inventory_is_what_nvidia_smi_shows(found: Inventory) -> None:
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    shown = {}
    for line in subprocess.check_output(command, text=True).splitlines():
        uuid, *facts = (fact.strip() for fact in line.split(","))
        shown[uuid] = facts
    for device in cards(found):
        index, name, bus_id, total, used, free, capability, mode = shown[device.id]
        reading = found.reading(device)
        assert (device.index, device.name) == (int(index), name)
        assert device.pci_bus_id == normalise_bus_id(bus_id)
        assert device.compute_capability == tuple(int(part) for part in capability.split("."))
        assert reading.compute_mode is not None
        assert reading.compute_mode.value == mode.lower()
        assert device.total_bytes is not None
        assert abs(device.total_bytes / MIB - int(total)) < 1
        # Other programs may allocate between the two measurements.
        assert reading.used_bytes is not None
        assert abs(reading.used_bytes / MIB - int(used)) < 512
        assert reading.free_bytes is not None
        assert abs(reading.free_bytes / MIB - int(free)) < 512


def visible_to_cuda(devices: list[Device]) -> list[str]:
    environment = {**os.environ, **launch_environment(devices)}
    return subprocess.check_output([sys.executable, "-c", COUNT_DEVICES], env=environment, text=True).split()


def test_cuda_numbers_the_planned_gpus_in_planned_order(found: Inventory) -> None:
    planned = cards(found)[::-1]

    assert visible_to_cuda(planned) == [device.id for device in planned]


def test_a_process_planned_on_host_ram_or_on_described_gpus_sees_no_gpu() -> None:
    assert visible_to_cuda([Device(HOST_ID, DeviceKind.HOST, HOST_NAME)]) == []
    assert visible_to_cuda(list(DescribedProbe(SystemClock(), "2x24GiB").inventory().devices)) == []
