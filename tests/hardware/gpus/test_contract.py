"""What every probe promises, on each of them."""

import re
from collections.abc import Callable

import pynvml
import pytest

from cotenant.clock import ManualClock
from cotenant.domain.devices import DeviceKind, DeviceOrder, Inventory, launch_environment
from cotenant.hardware.gpus.amd import AmdProbe
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.inventory import probe
from cotenant.hardware.gpus.nvml import NvmlProbe
from cotenant.interfaces import GpuProbe
from tests.support.gpus.fake_amdsmi import AmdCard, AmdSmiLibraryException, StandInAmdsmi, process
from tests.support.gpus.fake_nvml import MIB, PaperCard, Process, StandInNvml

NOW = 42.0


def on_paper(clock: ManualClock) -> GpuProbe:
    no_memory = {"nvmlDeviceGetMemoryInfo": pynvml.NVMLError_Unknown()}
    slices = (
        PaperCard("MIG-1", total=10 * MIB, reserved=0, used=MIB),
        PaperCard("MIG-2", total=5 * MIB, reserved=0, used=0),
    )
    return NvmlProbe(
        clock,
        StandInNvml(
            PaperCard("GPU-aaaa", used=9000 * MIB, compute=(Process(1, 8000 * MIB), Process(2))),
            PaperCard("GPU-bbbb", bus_id="00000000:02:00.0"),
            None,
            PaperCard("GPU-cccc", mig=slices, bus_id="00000000:04:00.0"),
            PaperCard("GPU-dddd", refuses=no_memory, bus_id="00000000:05:00.0"),
        ),
    )


def amd(clock: ManualClock) -> GpuProbe:
    memory = ("amdsmi_get_gpu_memory_total", "amdsmi_get_gpu_vram_usage")
    refuses: dict[str, Exception] = dict.fromkeys(memory, AmdSmiLibraryException(2))
    return AmdProbe(
        clock,
        StandInAmdsmi(
            AmdCard("GPU-00000000000000b1", hip_id=1, used=9000 * MIB, processes=[process(2, MIB)]),
            AmdCard("GPU-XX", hip_id=0, bdf="0000:83:00.0", total=8176 * MIB),
            AmdCard("GPU-00000000000000c2", hip_id=2, bdf="0000:c3:00.0", refuses=refuses),
        ),
    )


def no_library(clock: ManualClock) -> GpuProbe:
    return NvmlProbe(clock, StandInNvml(refuses={"nvmlInit": pynvml.NVMLError_LibraryNotFound()}))


def no_match(clock: ManualClock) -> GpuProbe:
    return NvmlProbe(clock, StandInNvml(refuses={"nvmlInit": pynvml.NVMLError_LibRmVersionMismatch()}))


PROBES: list[Callable[[ManualClock], GpuProbe]] = [
    on_paper,
    amd,
    no_library,
    no_match,
    HostProbe,
    lambda clock: probe("24GiB,RTX A5500:24564:19304,2xH200", clock),
    lambda clock: DescribedProbe(clock, "64x24GiB"),
    lambda clock: probe(None, clock),
]
NAMES = ["paper", "amd", "no-library", "mismatch", "host", "described", "many", "this-machine"]


def real_cards(clock: ManualClock) -> GpuProbe:
    found = NvmlProbe(clock)
    assert found.inventory().has_gpus, "no NVIDIA GPU to test on"
    return found


@pytest.fixture(params=[*PROBES, pytest.param(real_cards, marks=pytest.mark.gpu)], ids=[*NAMES, "real"])
def found(request: pytest.FixtureRequest) -> Inventory:
    made: GpuProbe = request.param(ManualClock(NOW))
    return made.inventory()


def test_there_is_always_a_device_and_each_has_its_own_id(found: Inventory) -> None:
    assert found.devices
    assert len({device.id for device in found.devices}) == len(found.devices)


def test_host_ram_is_a_device_only_where_it_is_the_only_one(found: Inventory) -> None:
    hosts = [device for device in found.devices if device.kind is DeviceKind.HOST]
    assert len(hosts) == (0 if found.has_gpus else 1)
    assert found.has_gpus or len(found.devices) == 1


def test_every_device_has_a_reading_of_now(found: Inventory) -> None:
    assert set(found.readings) == {device.id for device in found.devices}
    assert {reading.at for reading in found.readings.values()} == {NOW}


def test_memory_is_whole_or_unknown_with_a_problem(found: Inventory) -> None:
    for device in found.devices:
        reading = found.reading(device)
        known = [fact is not None for fact in (device.total_bytes, reading.used_bytes, reading.free_bytes)]
        assert all(known) or (not any(known) and reading.problem)
        if device.total_bytes is not None:
            assert device.total_bytes > 0
            assert 0 <= (reading.used_bytes or 0) + (reading.free_bytes or 0) <= device.total_bytes


def test_names_and_bus_ids_are_written_as_an_engine_prints_them(found: Inventory) -> None:
    for device in found.devices:
        assert device.name
        assert device.pci_bus_id is None or re.fullmatch(
            r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", device.pci_bus_id
        )


def test_devices_come_in_index_order_and_each_order_keeps_them_all(found: Inventory) -> None:
    indices = [device.index for device in found.devices if device.index is not None]
    assert indices == sorted(indices)
    for order in DeviceOrder:
        assert sorted(device.id for device in found.ordered(order)) == sorted(
            device.id for device in found.devices
        )


def test_each_device_can_be_selected_by_its_id(found: Inventory) -> None:
    for device in found.devices:
        selected = found.select([device.id])
        assert selected.devices == (device,)
        assert selected.reading(device) == found.reading(device)


def test_an_engine_sees_exactly_the_real_gpus_in_planned_order(found: Inventory) -> None:
    planned = found.ordered(DeviceOrder.FREE_DESC)
    environment = launch_environment(planned)
    visible = environment.get("ROCR_VISIBLE_DEVICES") or environment["CUDA_VISIBLE_DEVICES"]
    real = [device for device in planned if device.kind is not DeviceKind.HOST and not device.described]
    assert visible == (",".join(device.runtime_name or device.id for device in real) or "-1")


def test_processes_are_listed_once_each_in_order_of_pid(found: Inventory) -> None:
    for reading in found.readings.values():
        pids = [process.pid for process in reading.processes or ()]
        assert pids == sorted(set(pids))
