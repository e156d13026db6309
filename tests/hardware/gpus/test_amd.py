"""AMD's cards, against a stand-in for the module `amdsmi`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from cotenant.clock import ManualClock
from cotenant.domain.devices import DeviceKind, Inventory, launch_environment
from cotenant.domain.vendors import InventorySource, Vendor
from cotenant.hardware.gpus.amd import AmdProbe
from cotenant.hardware.gpus.inventory import MachineProbe
from cotenant.hardware.gpus.nvml import NvmlProbe
from tests.support.gpus.fake_amdsmi import (
    ANSWERS,
    DRIVER_NOT_LOADED,
    MIB,
    NOT_SUPPORTED,
    AmdCard,
    AmdSmiLibraryException,
    StandInAmdsmi,
    process,
)
from tests.support.gpus.fake_nvml import PaperCard, StandInNvml

REFUSED = AmdSmiLibraryException(NOT_SUPPORTED)


def found(*cards: AmdCard, devices: Path = Path("/nowhere"), **more: Any) -> Inventory:
    return AmdProbe(ManualClock(7.0), StandInAmdsmi(*cards, **more), devices=devices).inventory()


def test_a_card_is_told_with_all_that_the_driver_says() -> None:
    inventory = found(AmdCard(used=5 * MIB, processes=[process(20, 3 * MIB), process(4, 0, "N/A")]))

    (device,) = inventory.devices
    reading = inventory.reading(device)
    assert inventory.source is InventorySource.AMDSMI
    assert inventory.driver_version == "6.12.12"
    assert (device.id, device.index) == ("GPU-1122334455667788", 0)
    assert (device.vendor, device.runtime_name) == (Vendor.AMD, "GPU-1122334455667788")
    assert (device.name, device.pci_bus_id) == ("AMD Instinct MI210", "0000:63:00.0")
    assert device.render_node == 128
    assert device.bandwidth_bytes_per_s == 1638 * 10**9
    assert (device.total_bytes, reading.used_bytes, reading.free_bytes) == (
        65520 * MIB,
        5 * MIB,
        65515 * MIB,
    )
    assert [(p.pid, p.name, p.used_bytes) for p in reading.processes or ()] == [
        (4, None, 0),
        (20, "llama-server", 3 * MIB),
    ]
    assert (reading.utilisation_percent, reading.temperature_c, reading.power_w) == (37, 41, 88)
    assert reading.clock_mhz == 1700


@pytest.mark.parametrize("name", sorted(ANSWERS))
@pytest.mark.parametrize("how", ["refused", "lacking"])
def test_what_one_query_does_not_tell_hides_nothing_else(name: str, how: str) -> None:
    whole = found(AmdCard(processes=[process(1, MIB)]))
    if how == "refused":
        partial = found(AmdCard(processes=[process(1, MIB)], refuses={name: REFUSED}))
    else:
        partial = found(AmdCard(processes=[process(1, MIB)]), lacks=frozenset({name}))

    (device,), (known,) = partial.devices, whole.devices
    reading, told = partial.reading(device), whole.reading(known)
    assert partial.problems == ()
    expected: dict[str, Any] = {
        "amdsmi_get_gpu_asic_info": (replace(known, name="of unknown name"), told),
        "amdsmi_get_gpu_device_bdf": (replace(known, pci_bus_id=None), told),
        "amdsmi_get_gpu_vram_info": (replace(known, bandwidth_bytes_per_s=None), told),
        "amdsmi_get_gpu_process_list": (known, replace(told, processes=None)),
        "amdsmi_get_gpu_activity": (known, replace(told, utilisation_percent=None)),
        "amdsmi_get_temp_metric": (known, replace(told, temperature_c=None)),
        "amdsmi_get_power_info": (known, replace(told, power_w=None)),
        "amdsmi_get_clock_info": (known, replace(told, clock_mhz=None)),
    }
    if name == "amdsmi_get_gpu_enumeration_info":
        assert (device.runtime_name, device.id) == ("0", "AMD-11ff740f-0000-1000-8022-334455667788")
        assert reading.free_bytes == told.free_bytes
    else:
        assert (device, reading) == expected.get(name, (known, told))


def test_a_card_whose_memory_is_not_told_at_all_has_a_problem_and_no_size() -> None:
    silent = dict.fromkeys(
        ("amdsmi_get_gpu_memory_total", "amdsmi_get_gpu_memory_usage", "amdsmi_get_gpu_vram_usage"), REFUSED
    )

    inventory = found(AmdCard(refuses=silent))

    (device,) = inventory.devices
    reading = inventory.reading(device)
    assert (device.total_bytes, reading.used_bytes, reading.free_bytes) == (None, None, None)
    assert reading.problem


def test_what_the_module_writes_as_not_available_is_unknown() -> None:
    inventory = found(
        AmdCard(hip_id="N/A", name="N/A", bandwidth="N/A", activity="N/A", power="N/A", bdf="N/A")
    )

    (device,) = inventory.devices
    reading = inventory.reading(device)
    assert (device.index, device.name, device.bandwidth_bytes_per_s) == (0, "of unknown name", None)
    assert (reading.utilisation_percent, reading.power_w, device.pci_bus_id) == (None, None, None)


def test_cards_are_numbered_as_hip_does_and_engines_see_them_by_their_uuids_in_planned_order() -> None:
    first = AmdCard("GPU-00000000000000b1", hip_id=1, bdf="0000:03:00.0", total=8192 * MIB)
    second = AmdCard("GPU-00000000000000a0", hip_id=0, bdf="0000:83:00.0", total=4096 * MIB)

    inventory = found(first, second)

    assert [(device.index, device.id[-2:]) for device in inventory.devices] == [(0, "a0"), (1, "b1")]
    assert launch_environment(inventory.devices[::-1]) == {
        "ROCR_VISIBLE_DEVICES": "GPU-00000000000000b1,GPU-00000000000000a0",
        "HIP_VISIBLE_DEVICES": "0,1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }


def test_cards_without_a_number_of_their_own_are_named_by_their_place() -> None:
    twins = [AmdCard("GPU-XX", hip_id=n, uuid=f"{n}-uuid", bdf=f"0000:0{n}:00.0") for n in (0, 1)]

    inventory = found(*twins)

    assert [device.id for device in inventory.devices] == ["AMD-0-uuid", "AMD-1-uuid"]
    assert launch_environment(inventory.devices[1:])["ROCR_VISIBLE_DEVICES"] == "1"


def test_a_card_that_does_not_say_which_it_is_is_left_out_and_the_others_are_not() -> None:
    mute = dict.fromkeys(
        ("amdsmi_get_gpu_enumeration_info", "amdsmi_get_gpu_device_uuid", "amdsmi_get_gpu_device_bdf"),
        REFUSED,
    )

    inventory = found(AmdCard(refuses=mute), AmdCard(hip_id=1))

    assert [device.index for device in inventory.devices] == [1]
    assert "AMD GPU 0" in inventory.problems[0]


def test_a_machine_without_amds_driver_is_no_problem(tmp_path: Path) -> None:
    refuses = {"amdsmi_init": AmdSmiLibraryException(DRIVER_NOT_LOADED)}

    inventory = found(devices=tmp_path, refuses=refuses)

    assert inventory.source is InventorySource.HOST
    assert inventory.problems == ()


def test_a_driver_that_refuses_is_told_in_one_line_where_its_device_is(tmp_path: Path) -> None:
    (tmp_path / "kfd").touch()
    refuses = {"amdsmi_get_processor_handles": AmdSmiLibraryException(DRIVER_NOT_LOADED)}

    inventory = found(devices=tmp_path, refuses=refuses)

    assert inventory.devices[0].kind is DeviceKind.HOST
    assert inventory.problems == ("AMD's driver refuses: Error code: 34 | AMDSMI_STATUS - stood in.",)


def test_a_driver_that_comes_back_is_asked_anew() -> None:
    library = StandInAmdsmi(AmdCard())
    probe = AmdProbe(ManualClock(), library)
    assert probe.inventory().has_gpus
    library.refuses["amdsmi_get_processor_handles"] = REFUSED
    assert not probe.inventory().has_gpus
    library.refuses.clear()

    assert probe.inventory().has_gpus
    assert (library.sessions, library.opened) == (1, 2)


def test_a_missing_library_is_told_only_where_amds_device_is(tmp_path: Path) -> None:
    assert AmdProbe(ManualClock(), devices=tmp_path).inventory().problems == ()
    (tmp_path / "kfd").touch()

    (problem,) = AmdProbe(ManualClock(), devices=tmp_path).inventory().problems

    assert "amd-smi-lib" in problem


def test_a_module_that_prints_and_breaks_when_imported_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As amdsmi 7.0.2 does where libamd_smi.so is missing.
    source = "print('Unable to find libamd_smi.so library')\nsymbol = {}['libamd_smi.so']\n"
    (tmp_path / "amdsmi.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)

    inventory = AmdProbe(ManualClock(), devices=tmp_path).inventory()

    assert inventory.source is InventorySource.HOST
    assert capsys.readouterr().out == ""


def nvidia(*cards: PaperCard, refuses: dict[str, Exception] | None = None) -> NvmlProbe:
    return NvmlProbe(ManualClock(), StandInNvml(*cards, refuses=refuses))


def test_on_a_machine_with_both_vendors_nvidias_cards_alone_are_used() -> None:
    both = MachineProbe(nvidia(PaperCard("GPU-aaaa")), AmdProbe(ManualClock(), StandInAmdsmi(AmdCard())))

    assert [device.id for device in both.inventory().devices] == ["GPU-aaaa"]


def test_amds_cards_are_found_where_nvidia_has_none_and_its_problem_is_told() -> None:
    refuses: dict[str, Exception] = {"nvmlInit": pynvml.NVMLError_DriverNotLoaded()}
    machine = MachineProbe(nvidia(refuses=refuses), AmdProbe(ManualClock(), StandInAmdsmi(AmdCard())))

    inventory = machine.inventory()

    assert inventory.source is InventorySource.AMDSMI
    assert "modprobe nvidia" in inventory.problems[0]


def test_a_vendor_whose_cards_were_found_is_never_replaced_by_the_other() -> None:
    library = StandInNvml(PaperCard("GPU-aaaa"))
    machine = MachineProbe(
        NvmlProbe(ManualClock(), library), AmdProbe(ManualClock(), StandInAmdsmi(AmdCard()))
    )
    machine.inventory()
    library.refuses["nvmlDeviceGetCount"] = pynvml.NVMLError_Unknown()

    assert not machine.inventory().has_gpus
