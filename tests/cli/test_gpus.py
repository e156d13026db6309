import argparse
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pynvml
import pytest

from cotenant.cli import gpus
from cotenant.clock import ManualClock
from cotenant.domain.devices import DeviceOrder, Inventory
from cotenant.domain.errors import BadDeviceSpec, BadSetting, UnknownDevice
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.nvml import NvmlProbe
from tests.support.gpus.fake_nvml import MIB, PaperCard, Process, StandInNvml

TWO = "RTX A400:4094:329,RTX A5500:24564:19304"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COTENANT_GPUS", "COTENANT_DEVICES", "COTENANT_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    gpus.register(parser)
    return gpus.run(parser.parse_args(arguments))


def read_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert call("--json", *arguments) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def text(inventory: Inventory, order: DeviceOrder = DeviceOrder.FREE_DESC) -> list[str]:
    return list(gpus.as_text(inventory, order))


def paper(*cards: PaperCard | None, **library: Any) -> Inventory:
    return NvmlProbe(ManualClock(), StandInNvml(*cards, **library)).inventory()


def test_the_table_comes_in_the_planned_order_which_the_first_line_states(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("--gpus", TWO) == 0

    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title.startswith("GPUs sorted by free VRAM, the highest first")
    assert head.split() == ["GPU", "name", "UUID", "PCI", "total", "used", "free", "CC", "mode", "GB/s"]
    assert re.sub(r"GPU-\w+", "UUID", first).split() == (
        ["1", "RTX", "A5500", "UUID", "?", "24,564", "19,304", "5,260", "8.6", "default", "768"]
    )
    assert re.sub(r"GPU-\w+", "UUID", second).split() == (
        ["0", "RTX", "A400", "UUID", "?", "4,094", "329", "3,765", "8.6", "default", "96"]
    )


@pytest.mark.parametrize(
    ("order", "title", "indices"),
    [
        ("free_desc", "GPUs sorted by free VRAM, the highest first", [1, 0]),
        ("total_desc", "GPUs sorted by total VRAM, the highest first", [0, 1]),
        ("index", "GPUs in index order", [0, 1]),
    ],
)
def test_each_order_is_stated_and_followed(
    capsys: pytest.CaptureFixture[str], order: str, title: str, indices: list[int]
) -> None:
    spec = "24GiB:20GiB,12GiB"
    call("--gpus", spec, "--device-order", order)
    assert capsys.readouterr().out.startswith(title)

    devices = read_json(capsys, "--gpus", spec, "--device-order", order)["devices"]
    assert [device["index"] for device in devices] == indices


def test_variables_are_the_defaults_and_flags_win(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTENANT_GPUS", "3x8GiB")
    monkeypatch.setenv("COTENANT_DEVICES", "0, 2")
    monkeypatch.setenv("COTENANT_DEVICE_ORDER", "index")

    answer = read_json(capsys)
    assert answer["order"] == "index"
    assert [device["index"] for device in answer["devices"]] == [0, 2]

    answer = read_json(capsys, "--gpus", TWO, "--devices", "1", "--device-order", "total_desc")
    assert answer["order"] == "total_desc"
    assert [device["name"] for device in answer["devices"]] == ["RTX A5500"]


def test_empty_variables_count_as_unset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COTENANT_GPUS", "COTENANT_DEVICES", "COTENANT_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")

    assert read_json(capsys)["source"] != "described"


def test_a_shown_beginning_of_a_uuid_selects_its_device(capsys: pytest.CaptureFixture[str]) -> None:
    call("--gpus", "64x24GiB")
    shown = re.findall(r"GPU-\w+", capsys.readouterr().out)
    assert len(set(shown)) == 64

    (device,) = read_json(capsys, "--gpus", "64x24GiB", "--devices", shown[7])["devices"]
    assert device["index"] == 7


def test_wrong_flags_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadDeviceSpec):
        call("--gpus", "nonsense")
    with pytest.raises(UnknownDevice):
        call("--gpus", TWO, "--devices", "2")
    with pytest.raises(BadSetting, match="--device-order 'fastest' is not known"):
        call("--device-order", "fastest")
    monkeypatch.setenv("COTENANT_DEVICE_ORDER", "slowest")
    with pytest.raises(BadSetting, match="'slowest'"):
        call()


def test_json_holds_every_fact_with_bytes_as_integers() -> None:
    busy = PaperCard("GPU-a", used=9000 * MIB, compute=(Process(7, 8000 * MIB), Process(9)))
    answer = gpus.as_json(paper(busy, None, names={7: "python3"}), DeviceOrder.INDEX)

    assert answer == {
        "source": "nvml",
        "order": "index",
        "driver_version": "550.54.15",
        "cuda_version": "12.4",
        "problems": ["GPU 1 does not answer (GPU is lost): it is left out; see `dmesg` for why."],
        "devices": [
            {
                "index": 0,
                "kind": "gpu",
                "name": "NVIDIA GeForce RTX 3090",
                "uuid": "GPU-a",
                "pci_bus_id": "0000:01:00.0",
                "parent_uuid": None,
                "unified": False,
                "described": False,
                "total_bytes": 24576 * MIB,
                "used_bytes": 9000 * MIB,
                "free_bytes": (24576 - 9300) * MIB,
                "compute_capability": "8.6",
                "compute_mode": "default",
                "bandwidth_bytes_per_s": 936_096_000_000,
                "utilisation_percent": 37,
                "temperature_c": 61,
                "power_w": 214.5,
                "processes": [
                    {"pid": 7, "name": "python3", "used_bytes": 8000 * MIB},
                    {"pid": 9, "name": None, "used_bytes": None},
                ],
                "problem": None,
                "stranded_bytes": None,
                "fragmentation_ratio": None,
            }
        ],
    }


def test_a_daemon_that_answers_tells_how_much_of_the_free_memory_is_of_no_use() -> None:
    inventory = paper(PaperCard("GPU-a"), PaperCard("GPU-b"))
    found = {
        "ratio": 0.5,
        "free_bytes": 2000 * MIB,
        "stranded_bytes": 700 * MIB,
        "largest": None,
        "largest_in_one_piece": {"name": "llama", "bytes": 1500 * MIB},
        "by_device": {"GPU-b": {"ratio": 0.5, "stranded_bytes": 700 * MIB}},
    }
    cards = gpus.as_json(inventory, DeviceOrder.INDEX, found)["devices"]
    assert [card["stranded_bytes"] for card in cards] == [None, 700 * MIB]
    told = "\n".join(gpus.as_text(inventory, DeviceOrder.INDEX, found))
    assert (
        "GPU 1 NVIDIA GeForce RTX 3090: 700 MiB are free, but no model that is served could use them" in told
    )
    assert "cannot use 50% of" in told
    assert "The largest that fits: none; with the free memory in one piece: llama (1.5 GiB)." in told


def test_unknown_is_a_question_mark_with_its_reason_and_never_zero() -> None:
    everything = dict.fromkeys(
        (
            "nvmlDeviceGetMemoryInfo",
            "nvmlDeviceGetPciInfo",
            "nvmlDeviceGetComputeMode",
            "nvmlDeviceGetCudaComputeCapability",
            "nvmlDeviceGetMaxClockInfo",
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetGraphicsRunningProcesses",
            "nvmlDeviceGetMPSComputeRunningProcesses",
        ),
        pynvml.NVMLError_Unknown(),
    )
    found = paper(PaperCard("GPU-a", refuses=everything))

    lines = text(found)
    assert lines[2].split() == ["0", "RTX", "3090", "GPU-a", "?", "?", "?", "?", "?", "?", "?"]
    assert "  GPU 0  unknown: the driver does not list them" in lines
    assert lines[-1] == (
        "Problem: GPU 0 NVIDIA GeForce RTX 3090: the driver does not report its memory (Unknown Error)"
    )
    (device,) = gpus.as_json(found, DeviceOrder.INDEX)["devices"]
    facts = ("total_bytes", "used_bytes", "free_bytes", "compute_mode", "compute_capability", "processes")
    assert [device[fact] for fact in facts] == [None] * 6


def test_processes_are_shown_on_their_card_with_their_memory() -> None:
    busy = PaperCard("GPU-a", used=9000 * MIB, compute=(Process(7, 8000 * MIB), Process(9)))
    lines = text(paper(busy, PaperCard("GPU-b"), names={7: "/usr/bin/python3"}))

    start = lines.index("Processes:")
    assert [line.split() for line in lines[start + 1 :]] == [
        ["GPU", "0", "pid", "7", "8,000", "MiB", "/usr/bin/python3"],
        ["GPU", "0", "pid", "9", "unknown", "unknown", "program"],
    ]
    assert text(paper(PaperCard("GPU-a")))[-1] == "Processes: none"


def test_without_a_gpu_it_says_so_and_shows_the_ram() -> None:
    lines = text(HostProbe(ManualClock()).inventory())

    assert lines[0] == "No GPU that can be used: models run on the CPU, in host RAM."
    assert re.fullmatch(r"  host RAM: [\d,]+ MiB in all, [\d,]+ MiB available", lines[1])
    assert len(lines) == 2


def test_a_broken_driver_is_explained() -> None:
    lines = text(paper(refuses={"nvmlInit": pynvml.NVMLError_LibRmVersionMismatch()}))

    assert lines[0].startswith("No GPU")
    assert lines[-1].startswith("Problem: NVIDIA's loaded driver and its library are of different versions")


def test_the_table_fits_a_hundred_columns_and_keeps_the_end_of_long_names(tmp_path: Path) -> None:
    slices = tuple(
        PaperCard(
            f"MIG-{number}1234567-aaaa-bbbb-cccc-0123456789ab",
            name="NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 2g.48gb+gfx",
            total=143_771 * MIB,
            mode=pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
        )
        for number in range(3)
    )
    program = "/opt/" + "very-long-program-name/" * 9
    card = PaperCard(
        "GPU-0",
        total=143_771 * MIB,
        memory_clock_mhz=3201,
        bus_width_bits=6144,
        compute=(Process(4_194_304, MIB),),
    )
    lines = text(paper(PaperCard("GPU-1", mig=slices), card, names={4_194_304: program}))

    assert max(map(len, lines)) <= 100
    assert re.findall(r"b\+gfx \((0:\d)\)", "\n".join(lines)) == ["0:0", "0:1", "0:2"]


def test_a_card_has_one_number_in_all_lines_of_an_answer() -> None:
    prohibited = PaperCard("GPU-b", mode=pynvml.NVML_COMPUTEMODE_PROHIBITED)
    shown = "\n".join(text(paper(None, prohibited)))

    assert "GPU 0 does not answer" in shown
    assert "GPU 1 NVIDIA GeForce RTX 3090 is in Prohibited mode" in shown
    assert re.search(r"^ +1  RTX 3090", shown, re.MULTILINE)
    assert "GPU0" not in shown


def test_csv_has_a_line_for_each_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--csv", "--gpus", TWO) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["index"], first["name"], first["used_bytes"]) == ("1", "RTX A5500", str(19304 * MIB))
    assert (second["index"], second["temperature_c"]) == ("0", "")
