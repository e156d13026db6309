from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.clock import ManualClock
from cotenant.domain.devices import ComputeMode, DeviceKind, GpuProcess, Inventory
from cotenant.domain.errors import BadDeviceSpec
from cotenant.domain.units import GIB, MIB
from cotenant.domain.vendors import InventorySource
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.hardware.gpus.described_entry import _GPU_KEYS, _SIZES
from cotenant.hardware.gpus.known_cards import find_card


def described(spec: str) -> Inventory:
    return DescribedProbe(ManualClock(5.0), spec).inventory()


def memory(spec: str) -> list[tuple[str, int, int]]:
    """Name, total MiB and free MiB of each device."""
    found = described(spec)
    return [
        (device.name, (device.total_bytes or 0) // MIB, (found.reading(device).free_bytes or 0) // MIB)
        for device in found.devices
    ]


@pytest.mark.parametrize(
    ("spec", "devices"),
    [
        ("24GiB,24GiB,12GiB", [("GPU 24 GiB", 24576, 24576)] * 2 + [("GPU 12 GiB", 12288, 12288)]),
        (" 24 gib , 800MiB", [("GPU 24 GiB", 24576, 24576), ("GPU 800 MiB", 800, 800)]),
        ("1.5G", [("GPU 1.5 GiB", 1536, 1536)]),
        ("24GiB:2GiB", [("GPU 24 GiB", 24576, 22528)]),
        ("24GiB:512", [("GPU 24 GiB", 24576, 24064)]),
        (
            "RTX A5500:24564:19304,RTX A400:4094:329",
            [("RTX A5500", 24564, 5260), ("RTX A400", 4094, 3765)],
        ),
        ("RTX A400:4094", [("RTX A400", 4094, 4094)]),
        ("my card:4GiB:1GiB", [("my card", 4096, 3072)]),
        ("4x24GiB", [("GPU 24 GiB", 24576, 24576)] * 4),
        ("2 x RTX 3090:24576:576", [("RTX 3090", 24576, 24000)] * 2),
        ("2xRTX 3090,L4", [("RTX 3090", 24576, 24576)] * 2 + [("L4", 23034, 23034)]),
        ("nvidia geforce rtx3090", [("RTX 3090", 24576, 24576)]),
        ("64x1MiB", [("GPU 1 MiB", 1, 1)] * 64),
    ],
)
def test_descriptions_are_read(spec: str, devices: list[tuple[str, int, int]]) -> None:
    assert memory(spec) == devices


def test_a_known_name_brings_bandwidth_and_compute_capability() -> None:
    for spec in ("RTX 3090", "NVIDIA GeForce RTX 3090:20000"):
        (device,) = described(spec).devices
        assert device.bandwidth_bytes_per_s == 936 * 10**9
        assert device.compute_capability == (8, 6)


def test_known_cards_are_found_however_they_are_written() -> None:
    for name in ("A100-80GB", "Tesla V100 16GB", "nvidia rtx 4070 ti super", "RTX_4090", "H200"):
        assert find_card(name) is not None
    assert find_card("RTX") is None


def test_described_devices_say_so_and_are_alike_each_time() -> None:
    found, again = described("24GiB,RTX 3090"), described("24GiB,RTX 3090")

    assert found == again
    assert found.source is InventorySource.DESCRIBED
    assert [device.index for device in found.devices] == [0, 1]
    assert all(device.described and device.kind is DeviceKind.GPU for device in found.devices)
    assert all(found.reading(device).at == 5.0 for device in found.devices)


def test_uuids_are_told_apart_by_their_beginning_and_do_not_depend_on_the_memory_in_use() -> None:
    ids = [device.id for device in described("64x24GiB").devices]
    used = [device.id for device in described("64x24GiB:1GiB").devices]

    assert len({id_[:12] for id_ in ids}) == 64
    assert all(id_.startswith("GPU-") and len(id_) == 40 for id_ in ids)
    assert ids == used


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "entry 1 (''): it is empty"),
        ("24GiB,,24GiB", "entry 2 (''): it is empty"),
        ("24GiB,24", "entry 2 ('24'): '24' has no unit"),
        ("24XiB", "'24XiB' is not a size"),
        ("RTX 3091", "neither a size nor a GPU whose memory is known"),
        ("RTX 3090:lots", "'lots' is not a size"),
        ("RTX 3090:", "'' is not a size"),
        (":24GiB", "it has no name"),
        ("A:1:2:3", "more parts than name, total and used"),
        ("24GiB:1GiB:1GiB", "more parts"),
        ("24GiB:30GiB", "30,720 MiB used are more than 24,576 MiB in all"),
        ("0GiB", "under 1 MiB"),
        ("A:0", "under 1 MiB"),
        ("0x24GiB", "0 GPUs are not between 1 and 64"),
        ("65x24GiB", "65 GPUs are not between 1 and 64"),
        ("40x24GiB,40x24GiB", "more than 64 GPUs"),
        ("99999999TiB", "more memory than any machine has"),
        ("9" * 400 + "GiB", "more memory than any machine has"),
        ("bad\x1bname:24GiB", "printable"),
        ("nowhere.yaml", "nowhere.yaml cannot be read"),
        ("~nobody-there/gpus.yml", "is no path"),
        ("\0.yaml", "is no path"),
    ],
)
def test_wrong_descriptions_are_refused_with_the_place_and_a_hint(spec: str, reason: str) -> None:
    with pytest.raises(BadDeviceSpec) as refused:
        described(spec)

    assert reason in refused.value.message
    assert refused.value.hint


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(BadDeviceSpec) as refused:
        described("RTX 4099")

    assert "Did you mean RTX 4090" in refused.value.hint


@given(st.text(max_size=60) | st.from_regex(r"[\dx.,: GgiBMAR-]{0,40}", fullmatch=True))
def test_any_text_is_read_or_refused(spec: str) -> None:
    try:
        found = described(spec)
    except BadDeviceSpec:
        return
    assert 1 <= len(found.devices) <= 64
    for device in found.devices:
        reading = found.reading(device)
        assert device.total_bytes == (reading.used_bytes or 0) + (reading.free_bytes or 0)
        assert device.total_bytes >= MIB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gpus.yaml"


def test_a_file_gives_every_fact(file: Path) -> None:
    file.write_text(
        """
gpus:
  - name: RTX A5500
    total_mib: 24564
    used_mib: 19304
    uuid: GPU-0e3c1111-aaaa
    pci_bus_id: 0000:01:00.0
    compute_capability: 8.6
    compute_mode: exclusive_process
    bandwidth_gb_s: 768.1
    utilisation_percent: 37
    temperature_c: 61
    power_w: 214.5
    processes: [{pid: 12, name: python3, used_mib: 100}, {pid: 13, used: 1GiB}, {pid: 14}]
  - {name: slice, total: 10GiB, used: 1GiB, uuid: MIG-7}
  - RTX 3090
  - 2x8GiB
"""
    )
    found = described(str(file))

    first, second, third, *rest = found.devices
    assert (first.id, first.name, first.pci_bus_id) == ("GPU-0e3c1111-aaaa", "RTX A5500", "0000:01:00.0")
    assert (first.compute_capability, first.bandwidth_bytes_per_s) == ((8, 6), 768_100_000_000)
    reading = found.reading(first)
    assert (reading.used_bytes, reading.free_bytes) == (19304 * MIB, 5260 * MIB)
    assert reading.compute_mode is ComputeMode.EXCLUSIVE_PROCESS
    assert (reading.utilisation_percent, reading.temperature_c, reading.power_w) == (37, 61, 214.5)
    assert reading.processes == (
        GpuProcess(12, "python3", 100 * MIB),
        GpuProcess(13, None, GIB),
        GpuProcess(14, None, None),
    )
    assert (second.kind, second.total_bytes, found.reading(second).free_bytes) == (
        DeviceKind.MIG,
        10 * GIB,
        9 * GIB,
    )
    assert (third.name, third.total_bytes) == ("RTX 3090", 24 * GIB)
    assert [device.total_bytes for device in rest] == [8 * GIB] * 2


def test_a_live_file_is_read_anew_and_stands_while_it_is_broken(file: Path) -> None:
    file.write_text("{live: true, gpus: [{name: a, total_mib: 1000, used_mib: 0, uuid: GPU-1}]}")
    probe = DescribedProbe(ManualClock(), str(file))

    def used() -> list[int | None]:
        found = probe.inventory()
        return [found.reading(device).used_bytes for device in found.devices]

    assert probe.inventory().source is InventorySource.FOLLOWED
    assert probe.inventory().source.is_live
    assert used() == [0]
    file.write_text("{live: true, gpus: [{name: a, total_mib: 1000, used_mib: 700, uuid: GPU-1}]}")
    assert used() == [700 * MIB]
    for broken in ("{live: true, gpus: [", "", "{live: true, gpus: [{total: 1GiB, uuid: 7}]}"):
        file.write_text(broken)
        assert used() == [700 * MIB]
        (problem,) = probe.inventory().problems
        assert str(file) in problem
        assert "its last content is used" in problem
    file.unlink()
    assert used() == [700 * MIB]
    file.write_text("{live: false, gpus: [{total: 2GiB}, {total: 1GiB}]}")
    assert used() == [0, 0]
    assert probe.inventory().source is InventorySource.FOLLOWED, "how a daemon looks at it does not change"


def test_a_file_that_is_not_live_is_read_once(file: Path) -> None:
    file.write_text("{live: false, gpus: [{total: 1GiB}]}")
    probe = DescribedProbe(ManualClock(), str(file))
    file.unlink()

    found = probe.inventory()
    assert found.source is InventorySource.DESCRIBED
    assert found.problems == ()


def test_a_known_name_is_enough_in_a_file_and_what_is_stated_wins(file: Path) -> None:
    file.write_text("- {name: RTX 3090, bandwidth_gb_s: 900, compute_capability: 8.7}")
    (device,) = described(str(file)).devices

    assert device.total_bytes == 24576 * MIB
    assert (device.bandwidth_bytes_per_s, device.compute_capability) == (900 * 10**9, (8, 7))


def test_a_file_of_any_name_is_read_if_it_exists(tmp_path: Path) -> None:
    (tmp_path / "machine").write_text("[24GiB]")

    assert memory(str(tmp_path / "machine")) == [("GPU 24 GiB", 24576, 24576)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "holds no list"),
        ("gpus: []", "holds no list"),
        ("hello", "holds no list"),
        ("devices: [24GiB]", "has a key 'devices'"),
        ("- {name: a, total: 1GiB}\n- [1]", "entry 2: ['1'] is not a mapping"),
        ("- {name: a, totl: 1GiB}", "entry 1: unknown key 'totl'"),
        ("- {name: a, total: 24}", "'24' has no unit"),
        ("- {name: a, total_mib: many}", "'many' is not a size"),
        ("- {name: a, total: 1GiB, total_mib: 1024}", "both total and total_mib"),
        ("- {name: a, total: 1GiB, used: 2GiB}", "more than"),
        ("- {name: a}", "neither a size nor a GPU"),
        ("- {used: 1GiB}", "neither a name nor a total"),
        ("- {name: [], total: 1GiB}", "name cannot be []"),
        ("- {name: '', total: 1GiB}", "name cannot be ''"),
        ("- {name: a, total: 1GiB, uuid: 7}", "uuid cannot be '7'"),
        ("- {total: 1GiB, uuid: GPU-1}\n- {total: 1GiB, uuid: GPU-1}", "the UUID GPU-1 is there twice"),
        ("- {total: 1GiB, pci_bus_id: here}", "pci_bus_id cannot be 'here'"),
        ("- {total: 1GiB, compute_capability: new}", "compute_capability cannot be 'new'"),
        ("- {total: 1GiB, compute_mode: shared}", "compute_mode cannot be 'shared'"),
        ("- {total: 1GiB, bandwidth_gb_s: 0}", "bandwidth_gb_s cannot be '0'"),
        ("- {total: 1GiB, utilisation_percent: 101}", "utilisation_percent cannot be '101'"),
        ("- {total: 1GiB, temperature_c: warm}", "temperature_c cannot be 'warm'"),
        ("- {total: 1GiB, power_w: -3}", "power_w cannot be '-3'"),
        ("{live: perhaps, gpus: [1GiB]}", "live cannot be 'perhaps'"),
        ("{live: [true], gpus: [1GiB]}", "live cannot be ['true']"),
        ("{live: true}", "holds no list"),
        ("- {total: 1GiB, processes: 3}", "processes is not a list"),
        ("- {total: 1GiB, processes: [{name: a}]}", "a process has no pid"),
        ("- {total: 1GiB, processes: [{pid: -1}]}", "pid cannot be '-1'"),
        ("- {total: 1GiB, processes: [{pid: 1, memory: 2}]}", "unknown key 'memory'"),
        ("- 24GiB\n- {name: a\n- b", "line 3"),
        ("- &a [*a]\n", "line 1"),
        ("[" * 500, "is not a YAML text file"),
        ("- \x00", "is not a YAML text file"),
        ("- 40x1GiB\n- 40x1GiB", "entry 2: more than 64 GPUs"),
    ],
)
def test_wrong_files_are_refused_with_the_place_and_a_hint(file: Path, content: str, reason: str) -> None:
    file.write_text(content)
    with pytest.raises(BadDeviceSpec) as refused:
        described(str(file))

    assert reason in refused.value.message
    assert str(file) in refused.value.message
    assert refused.value.hint


def test_an_unknown_key_gets_the_nearest_right_one(file: Path) -> None:
    file.write_text("- {name: a, totl: 1GiB}")
    with pytest.raises(BadDeviceSpec) as refused:
        described(str(file))

    assert refused.value.hint == "Did you mean total?"

    file.write_text("- {name: a, memory: 1GiB}")  # near none
    with pytest.raises(BadDeviceSpec) as refused:
        described(str(file))
    assert refused.value.hint.startswith("Known keys: name, total, ")


def test_a_huge_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as huge:
        huge.truncate(1 << 30)
    (tmp_path / "folder.yaml").mkdir()

    for name, reason in (("huge.yaml", "over 256 KiB"), ("folder.yaml", "Is a directory")):
        with pytest.raises(BadDeviceSpec, match=reason):
            described(str(tmp_path / name))


def test_a_json_file_is_a_file_and_every_key_of_a_file_is_documented(tmp_path: Path) -> None:
    file = tmp_path / "gpus.json"
    file.write_text('{"gpus": [{"name": "Mine", "total_mib": 4096}]}')
    (device,) = described(str(file)).devices
    assert (device.name, device.total_bytes) == ("Mine", 4096 << 20)
    page = (Path(__file__).parents[3] / "docs" / "planning.md").read_text()
    assert [key for key in (*_SIZES, *_GPU_KEYS, "processes", "live: true") if f"`{key}`" not in page] == []
