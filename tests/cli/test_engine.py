import argparse
import json
from pathlib import Path

import pytest

from cotenant.cli import engine
from cotenant.domain.devices import Device, DeviceId, DeviceKind, Inventory
from cotenant.domain.errors import EngineInstallFailed, EngineMissing
from cotenant.domain.vendors import InventorySource, Vendor
from tests.support.engines.orders import fake_server


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    engine.register(parser)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


def test_list_shows_what_would_be_used_and_what_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_DEVICES", "  CUDA0: NVIDIA RTX A5500 (24564 MiB, 19304 MiB free)")
    program = fake_server(tmp_path)
    assert run("list", "--llama-server", str(program)) == 0
    shown = capsys.readouterr().out
    assert "llama-server 9.9 (fake): sees NVIDIA RTX A5500 (CUDA)" in shown
    assert str(program) in shown
    assert "xllamacpp" in shown


def test_list_as_json_marks_the_chosen_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_DEVICES", "  CUDA0: NVIDIA RTX A5500 (24564 MiB, 19304 MiB free)")
    monkeypatch.setenv("COTENANT_LLAMA_SERVER", str(fake_server(tmp_path)))
    run("list", "--json")
    told = json.loads(capsys.readouterr().out)
    first = told["engines"][0]
    assert (first["form"], first["version"]) == ("llama-server", "9.9 (fake)")
    assert first["devices"][0]["total_bytes"] == 24564 << 20
    assert all(entry["program"] for entry in told["engines"])


def test_list_with_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="is not a program"):
        run("list", "--llama-server", str(tmp_path / "missing"))


def test_a_dry_run_prints_the_command_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("install", "vulkan", "--dry-run", "--no-verify") == 0
    command, *notes = capsys.readouterr().out.splitlines()
    assert command.startswith("python -m pip install --force-reinstall")
    assert "/vulkan xllamacpp==" in command
    assert run("install", "vulkan", "--dry-run", "--newest") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("/vulkan xllamacpp")
    assert all(note.startswith("note: ") for note in notes)


@pytest.mark.parametrize(
    ("vendor", "flavour"),
    [
        (Vendor.NVIDIA, "/cu"),
        (Vendor.AMD, "/rocm"),
        (None, "--no-input xllamacpp=="),
    ],
)
def test_without_a_word_it_installs_what_the_cards_of_the_machine_need(
    vendor: Vendor | None,
    flavour: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = Device(DeviceId("GPU-a"), DeviceKind.GPU, "a card", vendor=vendor)
    inventory = Inventory(InventorySource.NVML, (card,), {}, cuda_version="12.8")
    monkeypatch.setattr(engine, "measured", lambda described: inventory)
    assert run("install", "--dry-run", "--no-verify") == 0
    assert flavour in capsys.readouterr().out.splitlines()[0]


def test_an_index_of_ones_own_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("install", "cpu", "--dry-run", "--index", str(tmp_path)) == 0
    assert f"--no-index --find-links {tmp_path} --require-hashes -r " in capsys.readouterr().out


@pytest.mark.slow
def test_an_install_that_fails_prints_the_command_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineInstallFailed, match="No matching distribution"):
        run("install", "cpu", "--index", str(tmp_path))
    assert capsys.readouterr().out.startswith("python -m pip install")
