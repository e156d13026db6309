from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from cotenant.doctor import cards
from cotenant.doctor.findings import Level
from cotenant.domain.devices import Device, DeviceId, DeviceKind, Inventory
from cotenant.domain.vendors import InventorySource, Vendor
from cotenant.hardware.gpus.card_health import read_health
from tests.doctor.support import HEALTH, HealthNvml, SickCard, levels, machine, only, write
from tests.support.gpus.fake_nvml import MIB, PaperCard, Process


def test_the_stand_in_answers_only_what_the_real_library_can_be_asked() -> None:
    assert [name for name in HEALTH if not callable(getattr(pynvml, name, None))] == []


def test_a_healthy_card_gives_no_reason_to_worry(tmp_path: Path) -> None:
    host = machine(tmp_path, SickCard("GPU-a"))

    for look in (cards.driver, cards.health, cards.compute_modes, cards.foreign_processes):
        found = list(look(host))
        assert found, look
        assert set(levels(found)) == {Level.OK}, found


@pytest.mark.parametrize(
    ("card", "level", "says", "mend"),
    [
        (SickCard("GPU-a", uncorrected=3), Level.PROBLEM, "3 memory errors", "nvidia-smi -i 0 -r"),
        (SickCard("GPU-a", rows=(0, 1, 1, 0)), Level.WARNING, "waits to be remapped", "nvidia-smi -i 0 -r"),
        (SickCard("GPU-a", rows=(9, 9, 0, 1)), Level.PROBLEM, "spare rows", "ROW_REMAPPER"),
        (SickCard("GPU-a", rows=None, retired_pending=1), Level.WARNING, "waits to be remapped", "-r"),
        (SickCard("GPU-a", width=4), Level.WARNING, "4 lanes of 16", "Reseat"),
        (
            SickCard("GPU-a", generation=1, performance_state=0),
            Level.WARNING,
            "generation 1 of 4 under load",
            "firmware",
        ),
        (SickCard("GPU-a", persistence=0), Level.WARNING, "persistence mode is off", "sudo nvidia-smi -pm 1"),
        (SickCard("GPU-a", temperature=93), Level.WARNING, "93 °C", "fans"),
        (SickCard("GPU-a", reasons=64 | 128), Level.WARNING, "too hot, the power supply", "PERFORMANCE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_ill_of_a_card_is_found_with_its_remedy(
    tmp_path: Path, card: SickCard, level: Level, says: str, mend: str
) -> None:
    found = [each for each in cards.health(machine(tmp_path, card)) if each.level is not Level.OK]

    assert levels(found) == [level], found
    assert says in found[0].seen
    assert mend in found[0].fix
    assert found[0].matters


def test_a_link_that_rests_is_not_taken_for_a_slow_one(tmp_path: Path) -> None:
    resting = SickCard("GPU-a", generation=1, performance_state=8)

    assert set(levels(cards.health(machine(tmp_path, resting)))) == {Level.OK}


@pytest.mark.parametrize("query", sorted(HEALTH))
@pytest.mark.parametrize(
    "error", [pynvml.NVMLError_NotSupported(), pynvml.NVMLLibraryMismatchError("an old driver")]
)
def test_a_refused_query_leaves_only_its_own_fact_unknown(query: str, error: Exception) -> None:
    (card,) = read_health(HealthNvml(SickCard("GPU-a", refuses={query: error})))
    (whole,) = read_health(HealthNvml(SickCard("GPU-a")))

    different = [name for name in card.__slots__ if getattr(card, name) != getattr(whole, name)]
    assert len(different) <= 2, different
    assert all(getattr(card, name) is None for name in different)


def test_a_card_that_is_lost_hides_no_other() -> None:
    assert [card.index for card in read_health(HealthNvml(None, SickCard("GPU-b")))] == [1]


@pytest.mark.parametrize(
    ("mode", "level"),
    [
        (pynvml.NVML_COMPUTEMODE_DEFAULT, Level.OK),
        (pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, Level.WARNING),
        (pynvml.NVML_COMPUTEMODE_PROHIBITED, Level.PROBLEM),
    ],
)
def test_a_compute_mode_is_judged_and_the_way_out_named(tmp_path: Path, mode: int, level: Level) -> None:
    (found,) = cards.compute_modes(machine(tmp_path, PaperCard("GPU-a", mode=mode)))

    assert found.level is level
    if level is not Level.OK:
        assert found.fix == "sudo nvidia-smi -i 0 -c DEFAULT"
    if level is Level.WARNING:
        assert "`devices.mps: auto`" in found.matters


def test_a_driver_that_refuses_is_a_problem_in_its_own_words(tmp_path: Path) -> None:
    host = machine(tmp_path, PaperCard("GPU-a"))
    broken = machine(tmp_path, None)

    assert Level.PROBLEM not in levels(cards.driver(host))
    assert "GPU 0 does not answer" in only(cards.driver(broken), Level.PROBLEM).seen


def test_a_card_without_a_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    host = machine(tmp_path)
    assert levels(cards.driver(host)) == [Level.OK]

    write(tmp_path, "/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    write(tmp_path, "/sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    write(tmp_path, "/sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    write(tmp_path, "/sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    found = only(cards.driver(host), Level.PROBLEM)
    assert "1 NVIDIA card(s) are plugged in (0000:01:00.0)" in found.seen


def test_only_others_count_as_foreign(tmp_path: Path) -> None:
    card = PaperCard("GPU-a", compute=(Process(10, 8000 * MIB), Process(20, 9000 * MIB)))
    write(tmp_path, "/proc/10/stat", "10 (llama-server) S 5 10 10 0")
    write(tmp_path, "/proc/10/cmdline", "llama-server\0-m\0m.gguf")
    write(tmp_path, "/proc/5/cmdline", "python\0-m\0cotenant.cli.main\0serve")
    write(tmp_path, "/proc/20/cmdline", "python\0train.py")
    write(tmp_path, "/proc/20/stat", "20 (python) S 1 20 20 0")

    found = only(cards.foreign_processes(machine(tmp_path, card)), Level.WARNING)
    assert "others hold 8.8 GiB (unknown 20)" in found.seen
    assert found.fix == "kill 20"


def test_a_desktop_on_the_card_is_no_warning(tmp_path: Path) -> None:
    card = PaperCard("GPU-a", graphics=(Process(7, 300 * MIB),))

    (found,) = cards.foreign_processes(machine(tmp_path, card))
    assert found.level is Level.OK


def test_amds_cards_are_not_taken_for_nvidias_though_their_ids_look_alike(tmp_path: Path) -> None:
    card = Device(DeviceId("GPU-1122334455667788"), DeviceKind.GPU, "Instinct MI210", vendor=Vendor.AMD)
    host = replace(machine(tmp_path), inventory=lambda: Inventory(InventorySource.AMDSMI, (card,), {}))
    assert host.cards() == (card,)
    assert host.nvidia_cards() == ()


def test_a_gpu_that_shares_host_ram_is_said_to(tmp_path: Path) -> None:
    refuses = {"nvmlDeviceGetMemoryInfo": pynvml.NVMLError_NotSupported()}
    host = machine(tmp_path, SickCard("GPU-a", "NVIDIA GB10", refuses=refuses))

    (found,) = cards.readings(host)
    assert found.level is Level.OK
    assert "of host RAM, which it shares" in found.seen
