from pathlib import Path

import pynvml
import pytest

from cotenant.clock import ManualClock
from cotenant.domain.devices import ComputeMode, DeviceKind, GpuProcess, Inventory
from cotenant.domain.vendors import InventorySource
from cotenant.hardware.gpus.nvml import NvmlProbe
from tests.support.gpus.fake_nvml import ANSWERS, MIB, PaperCard, Process, StandInNvml

QUERIES = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetMemoryBusWidth",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetMigMode",
)
FACTS_OF = {
    "nvmlDeviceGetUtilizationRates": "utilisation_percent",
    "nvmlDeviceGetTemperature": "temperature_c",
    "nvmlDeviceGetPowerUsage": "power_w",
}
ERRORS = (
    pynvml.NVMLError_NotSupported(),
    pynvml.NVMLError_NoPermission(),
    pynvml.NVMLError_Unknown(),
    pynvml.NVMLError_GpuIsLost(),
    pynvml.NVMLError_NotFound(),
    pynvml.NVMLLibraryMismatchError("an old driver"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "cut short"),
)


def inventory(*cards: PaperCard | None, **library: object) -> Inventory:
    return NvmlProbe(ManualClock(7.0), StandInNvml(*cards, **library)).inventory()  # type: ignore[arg-type]


def test_the_stand_in_answers_only_what_the_real_library_can_be_asked() -> None:
    own = {name for name in vars(StandInNvml) if name.startswith("nvml")}

    assert [name for name in sorted({*ANSWERS, *own}) if not callable(getattr(pynvml, name, None))] == []


def test_a_card_is_read_in_full() -> None:
    found = inventory(PaperCard("GPU-a"))

    (card,) = found.devices
    assert (card.id, card.index, card.kind) == ("GPU-a", 0, DeviceKind.GPU)
    assert card.label == "GPU 0 NVIDIA GeForce RTX 3090"
    assert card.total_bytes == 24576 * MIB
    assert card.pci_bus_id == "0000:01:00.0"
    assert card.compute_capability == (8, 6)
    reading = found.reading(card)
    assert reading.at == 7.0
    assert reading.used_bytes == 1000 * MIB
    assert reading.free_bytes == (24576 - 300 - 1000) * MIB
    assert reading.compute_mode is ComputeMode.DEFAULT
    assert reading.processes == ()
    assert (reading.utilisation_percent, reading.temperature_c, reading.power_w) == (37, 61, 214.5)
    assert reading.problem is None
    assert (found.source, found.problems) == (InventorySource.NVML, ())
    assert (found.driver_version, found.cuda_version) == ("550.54.15", "12.4")


@pytest.mark.parametrize(
    ("clock_mhz", "bus_bits", "gb_per_s"), [(9751, 384, 936), (3201, 6144, 4917), (14001, 512, 1792)]
)
def test_bandwidth_follows_from_clock_and_bus_width(clock_mhz: int, bus_bits: int, gb_per_s: int) -> None:
    found = inventory(PaperCard("GPU-a", memory_clock_mhz=clock_mhz, bus_width_bits=bus_bits))

    assert found.devices[0].bandwidth_bytes_per_s is not None
    assert round(found.devices[0].bandwidth_bytes_per_s / 1e9) == gb_per_s


@pytest.mark.parametrize(
    ("mode", "meaning"),
    [
        (pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD, ComputeMode.EXCLUSIVE_PROCESS),
        (pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, ComputeMode.EXCLUSIVE_PROCESS),
        (pynvml.NVML_COMPUTEMODE_PROHIBITED, ComputeMode.PROHIBITED),
        (99, None),
    ],
)
def test_compute_modes_are_told_apart_and_a_new_one_is_unknown(mode: int, meaning: ComputeMode) -> None:
    found = inventory(PaperCard("GPU-a", mode=mode))

    assert found.reading(found.devices[0]).compute_mode is meaning


def test_an_old_driver_without_memory_v2_still_tells_the_memory() -> None:
    old = {"nvmlDeviceGetMemoryInfo_v2": pynvml.NVMLError_FunctionNotFound()}
    found = inventory(PaperCard("GPU-a", refuses=old))

    reading = found.reading(found.devices[0])
    assert reading.free_bytes == (24576 - 1300) * MIB
    assert reading.used_bytes == 1300 * MIB


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_one_refused_query_leaves_one_fact_unknown_and_no_other_card_hidden(
    query: str, error: Exception
) -> None:
    found = inventory(PaperCard("GPU-a", refuses={query: error}), PaperCard("GPU-b"))

    assert [device.id for device in found.devices] == ["GPU-a", "GPU-b"]
    assert found.reading(found.devices[1]).free_bytes == (24576 - 1300) * MIB
    first = found.reading(found.devices[0])
    memory = (found.devices[0].total_bytes, first.used_bytes, first.free_bytes)
    if query == "nvmlDeviceGetMemoryInfo" and isinstance(error, pynvml.NVMLError_NotSupported):
        # It shares host RAM.
        assert found.devices[0].unified
        assert None not in memory
    elif query == "nvmlDeviceGetMemoryInfo":
        assert memory == (None, None, None)
        assert first.problem is not None
        assert "memory" in first.problem
    else:
        assert None not in memory
        assert 0 not in memory
        assert first.problem is None
    unknown = {fact for fact in FACTS_OF.values() if getattr(first, fact) is None}
    assert unknown == {FACTS_OF[query]} & set(FACTS_OF.values()) if query in FACTS_OF else not unknown


def test_an_idle_card_says_zero_percent_and_not_nothing() -> None:
    found = inventory(PaperCard("GPU-a", utilisation=0, milliwatts=0))

    reading = found.reading(found.devices[0])
    assert (reading.utilisation_percent, reading.power_w) == (0, 0.0)


def test_a_slice_whose_driver_tells_no_utilisation_leaves_it_unknown() -> None:
    refuses = dict.fromkeys(FACTS_OF, pynvml.NVMLError_NotSupported())
    found = inventory(mig_card(PaperCard("MIG-1", refuses=refuses)))

    reading = found.reading(found.devices[0])
    assert (reading.utilisation_percent, reading.temperature_c, reading.power_w) == (None, None, None)
    assert reading.free_bytes is not None


def test_a_card_that_says_zero_bytes_in_all_is_unknown_and_not_empty() -> None:
    found = inventory(PaperCard("GPU-a", total=0, reserved=0, used=0))

    assert found.devices[0].total_bytes is None
    assert found.reading(found.devices[0]).free_bytes is None


def test_processes_that_no_list_tells_are_unknown_and_not_none() -> None:
    refuses = {query: pynvml.NVMLError_NoPermission() for query in QUERIES if "Processes" in query}
    found = inventory(PaperCard("GPU-a", refuses=refuses))

    assert found.reading(found.devices[0]).processes is None


def test_a_lost_card_is_named_and_hides_no_other() -> None:
    found = inventory(PaperCard("GPU-a"), None, PaperCard("GPU-c"))

    assert [(device.id, device.index) for device in found.devices] == [("GPU-a", 0), ("GPU-c", 2)]
    assert found.problems == ("GPU 1 does not answer (GPU is lost): it is left out; see `dmesg` for why.",)


def test_when_every_card_is_lost_only_host_ram_is_left_with_the_reason() -> None:
    found = inventory(None)

    assert found.source is InventorySource.HOST
    assert not found.has_gpus
    assert "GPU 0 does not answer" in found.problems[0]


def test_a_process_on_several_lists_counts_once() -> None:
    card = PaperCard(
        "GPU-a",
        compute=(Process(30, 500), Process(10, None)),
        graphics=(Process(30, 500), Process(20, 7)),
        mps=(Process(10, 90), Process(40, None)),
    )
    found = inventory(card, names={30: "/usr/bin/python3", 20: ""})

    assert found.reading(found.devices[0]).processes == (
        GpuProcess(10, None, 90),
        GpuProcess(20, None, 7),
        GpuProcess(30, "/usr/bin/python3", 500),
        GpuProcess(40, None, None),
    )


def mig_card(*slices: PaperCard | None) -> PaperCard:
    return PaperCard(
        "GPU-a",
        name="NVIDIA A100",
        mode=pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
        capability=(8, 0),
        mig=slices,
    )


def test_mig_slices_take_the_place_of_their_card() -> None:
    first = PaperCard("MIG-1", name="NVIDIA A100 MIG 3g.20gb", total=20 * MIB, reserved=0, used=5 * MIB)
    second = PaperCard(
        "MIG-2", total=10 * MIB, reserved=0, used=0, refuses=dict.fromkeys(["nvmlDeviceGetName"], ERRORS[0])
    )
    found = inventory(mig_card(first, None, second), PaperCard("GPU-b"))

    assert [device.id for device in found.devices] == ["MIG-1", "MIG-2", "GPU-b"]
    one, two, _ = found.devices
    assert (one.kind, one.parent_id, one.index) == (DeviceKind.MIG, "GPU-a", 0)
    assert (one.name, two.name) == ("NVIDIA A100 MIG 3g.20gb", "NVIDIA A100 MIG")
    assert (one.compute_capability, one.pci_bus_id) == ((8, 0), "0000:01:00.0")
    assert one.bandwidth_bytes_per_s is None
    assert found.reading(one).free_bytes == 15 * MIB
    assert found.reading(one).compute_mode is ComputeMode.EXCLUSIVE_PROCESS
    assert [device.id for device in found.select(["0"]).devices] == ["MIG-1", "MIG-2"]


def test_slices_of_one_profile_are_told_apart_by_their_number_within_the_card() -> None:
    first, second = (PaperCard(f"MIG-{number}", name="NVIDIA A100 MIG 3g.20gb") for number in (1, 2))
    one, two = inventory(mig_card(first, None, second)).devices

    assert (one.name, two.name) == ("NVIDIA A100 MIG 3g.20gb",) * 2
    assert (one.label, two.label) == ("MIG 0:0 NVIDIA A100 MIG 3g.20gb", "MIG 0:2 NVIDIA A100 MIG 3g.20gb")
    assert two.own_name == "NVIDIA A100 MIG 3g.20gb (0:2)"


def test_a_card_in_mig_mode_without_slices_is_explained() -> None:
    found = inventory(mig_card(), PaperCard("GPU-b"))

    assert [device.id for device in found.devices] == ["GPU-b"]
    assert "GPU 0 NVIDIA A100 is in MIG mode without a slice" in found.problems[0]
    assert "nvidia-smi mig -i 0 -cgi" in found.problems[0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (pynvml.NVMLError_LibRmVersionMismatch(), "reboot"),
        (pynvml.NVMLError_DriverNotLoaded(), "modprobe nvidia"),
        (pynvml.NVMLError_NoPermission(), "/dev/nvidia*"),
        (pynvml.NVMLError_Unknown(), "recreate"),
        (pynvml.NVMLError_CorruptedInforom(), "Corrupted infoROM"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("query", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_refuses_as_a_whole_leaves_host_ram_and_one_sentence(
    error: Exception, reason: str, query: str
) -> None:
    found = inventory(PaperCard("GPU-a"), refuses={query: error})

    assert found.source is InventorySource.HOST
    assert [device.kind for device in found.devices] == [DeviceKind.HOST]
    (problem,) = found.problems
    assert reason in problem


def test_a_machine_without_nvidias_library_has_no_gpu_and_no_problem(tmp_path: Path) -> None:
    library = StandInNvml(refuses={"nvmlInit": pynvml.NVMLError_LibraryNotFound()})
    found = NvmlProbe(ManualClock(), library, devices=tmp_path).inventory()

    assert not found.has_gpus
    assert found.problems == ()


def test_a_container_with_a_gpu_but_without_the_library_is_told_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    library = StandInNvml(refuses={"nvmlInit": pynvml.NVMLError_LibraryNotFound()})
    found = NvmlProbe(ManualClock(), library, devices=tmp_path).inventory()

    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in found.problems[0]


def test_a_driver_without_cards_is_no_problem() -> None:
    found = inventory()

    assert not found.has_gpus
    assert found.problems == ()


def test_the_session_stays_open_between_inventories_and_is_renewed_after_a_failure() -> None:
    library = StandInNvml(PaperCard("GPU-a"))
    probe = NvmlProbe(ManualClock(), library)
    probe.inventory()
    probe.inventory()
    assert (library.opened, library.sessions) == (1, 1)

    library.refuses["nvmlDeviceGetCount"] = pynvml.NVMLError_Unknown()
    assert not probe.inventory().has_gpus
    assert library.sessions == 0

    library.refuses.clear()
    assert probe.inventory().has_gpus
    assert (library.opened, library.sessions) == (2, 1)
