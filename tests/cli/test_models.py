import asyncio
import csv
import io
import json
import os
import pty
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from cotenant.domain.devices import DeviceId
from cotenant.domain.models import Parts
from cotenant.domain.records import FootprintRecord
from cotenant.domain.units import MIB
from cotenant.engines.process.marks import MARK, new_mark
from cotenant.store.store import SqlJournal
from cotenant.store.writer import Writer
from tests.support.engines.fake_programs import ollama_daemon
from tests.support.models.gguf_models import build_tiny_llama, llama_8b, llama_70b


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("COTENANT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    build_tiny_llama(folder / "tiny.gguf")
    llama_8b(folder / "llama.gguf")
    entry = "{path: models/llama.gguf, name: l8, pinned: yes, keep_alive: forever}"
    text = f"models_dir: models\nmodels: [{entry}]\n"
    (tmp_path / "cotenant.yaml").write_text(text)
    return folder


def test_the_table_tells_sizes_places_and_that_all_fit(
    capsys: pytest.CaptureFixture[str], models: Path
) -> None:
    assert main(["models", "--gpus", "24GiB"]) == 0
    shown = capsys.readouterr().out
    assert "l8    Q4_K_M  4.6 GiB  5.4 GiB       -  GPU 0 GPU 24 GiB  forever     pinned" in shown
    assert "All 2 models loaded at once need 5.9 GiB; 23.0 GiB may be planned on 1 GPU." in shown
    assert "They all fit at once." in shown


def remember(state: Path, engine: str, took: int) -> None:
    """Record three loads of l8 for which 110 MiB were planned and 100 MiB reported."""
    state.mkdir(exist_ok=True)
    journal = SqlJournal(Writer(state / "cotenant.db"))
    planned, reported = Parts(weights=110 * MIB), Parts(weights=100 * MIB)
    where = DeviceId("GPU-0"), "GPU 24 GiB"
    for at in range(3):
        row = FootprintRecord(float(at), "l8", "f", "r", *where, planned, engine, reported, took * MIB)
        journal.record(row)
    asyncio.run(journal.close())


def test_models_are_told_as_serve_would_plan_them(
    capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path
) -> None:
    def told() -> tuple[int, object]:
        assert main(["models", "--gpus", "24GiB", "--json"]) == 0
        (found,) = (m for m in json.loads(capsys.readouterr().out)["models"] if m["name"] == "l8")
        return found["needed_bytes"], found["estimate_error"]

    unlearned, _ = told()
    remember(tmp_path / "state", "ollama 0.12.1", 100)
    assert told() == (unlearned, None)
    remember(tmp_path / "state", "llama-server b1", 200)
    assert told() == (unlearned - (512 - 132) * MIB, pytest.approx(0.45))


def test_models_that_must_wait_and_that_fit_nowhere_are_named(
    capsys: pytest.CaptureFixture[str], models: Path
) -> None:
    llama_8b(models / "other.gguf")
    llama_70b(models / "big.gguf")
    assert main(["models", "--gpus", "8GiB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    peak = told["peak"]
    assert (peak["together"], peak["waiting"], peak["nowhere"]) == (["l8", "tiny"], ["other"], ["big"])
    assert peak["needed_bytes"] > peak["offered_bytes"]
    by_name = {model["name"]: model for model in told["models"]}
    assert by_name["big"]["fits"] is False
    assert by_name["l8"]["keep_alive_s"] is None
    assert by_name["l8"]["devices"][0]["planned_bytes"] == by_name["l8"]["needed_bytes"]
    assert main(["models", "--gpus", "8GiB"]) == 0
    shown = capsys.readouterr().out
    assert "2 fit at once (l8, tiny); other must wait until others are unloaded." in shown
    assert "Too large even alone: big." in shown


def test_a_folder_alone_is_enough_and_nothing_at_all_is_told(
    capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path
) -> None:
    (tmp_path / "cotenant.yaml").unlink()
    assert main(["models", "--models-dir", "models", "--gpus", "8GiB"]) == 0
    assert "llama" in capsys.readouterr().out
    assert main(["models"]) == 2
    assert "there is no configuration" in capsys.readouterr().err


def test_a_check_lists_everything_wrong(
    capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path
) -> None:
    assert main(["models", "--check"]) == 0
    assert "cotenant.yaml is valid: 2 models." in capsys.readouterr().out
    (tmp_path / "cotenant.yaml").write_text("modles: []\nserver: {port: x}\n")
    assert main(["models"]) == 2
    assert "(and 1 more)" in capsys.readouterr().err
    assert main(["models", "--check"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "cotenant.yaml, line 1: modles: unknown setting (Did you mean models?)",
        "cotenant.yaml, line 2: server.port: x is not a whole number from 0 to 65,535",
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("devices: {gpus: absent.yaml}", "absent.yaml cannot be read"),
        ("devices: {gpus: '24GiB,8GiB', use: [2]}", "'2' names no device"),
        (
            "devices: {gpus: '24GiB'}\nmodels: [{path: models/llama.gguf, gpus: [9]}]",
            "gpus of llama: '9' names",
        ),
    ],
)
def test_a_check_names_devices_that_are_not_there(
    text: str, what: str, capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path
) -> None:
    (tmp_path / "cotenant.yaml").write_text(text)
    assert main(["models", "--check"]) == 2
    assert what in capsys.readouterr().out


def test_files_are_deleted_only_when_somebody_agreed(
    capsys: pytest.CaptureFixture[str], models: Path
) -> None:
    assert main(["models", "rm", "tiny"]) == 2
    assert "cannot ask for confirmation" in capsys.readouterr().err
    assert (models / "tiny.gguf").exists()
    assert main(["models", "rm", "tiny", "--yes"]) == 0
    assert not (models / "tiny.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "stays"), [(b"n\n", True), (b"\n", True), (b"y\n", False)])
def test_on_a_terminal_it_asks(models: Path, answer: bytes, stays: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        command = [
            sys.executable,
            "-m",
            "cotenant.cli.main",
            "models",
            "--models-dir",
            "models",
            "rm",
            "tiny",
        ]
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "[y/N]" in done.stdout
    assert done.returncode == (1 if stays else 0)
    assert (models / "tiny.gguf").exists() is stays


def held(capsys: pytest.CaptureFixture[str], folder: Path, text: str, **memory: str) -> dict[str, Any]:
    """Return what `models --json` says of models of these sizes: of what fits at once, and of warnings."""
    entries = [
        f"{{name: {name}, engine: command, command: [x], memory: {size}}}" for name, size in memory.items()
    ]
    (folder / "cotenant.yaml").write_text(f"{text}\nmodels: [{', '.join(entries)}]\n")
    assert main(["models", "--json"]) == 0
    peak: dict[str, Any] = json.loads(capsys.readouterr().out)["peak"]
    return peak


def test_what_fits_at_once_is_what_the_daemon_holds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = "devices: {gpus: '24GiB', overhead_mib: 0}"
    # What the first leaves is less than `min_budget_mib`, which is for a card with nothing of ours on it.
    assert held(capsys, tmp_path, one, a="22.5GiB", b="300MiB")["together"] == ["a", "b"]
    # One after the other, the smallest first, more of them are held.
    assert held(capsys, tmp_path, one, a="20GiB", b="11GiB", c="12GiB")["together"] == ["b", "c"]
    limited = f"{one}\ndefaults: {{max_loaded: 1}}"
    assert held(capsys, tmp_path, limited, a="2GiB", b="1GiB")["waiting"] == ["b"]
    # The card of which less is left is filled first, so that the largest model finds room.
    two = "devices: {gpus: '24GiB,12GiB', overhead_mib: 0, order: index}"
    found = held(capsys, tmp_path, two, a="10GiB", b="22GiB", c="1GiB")
    assert sorted(found["together"]) == ["a", "b", "c"]
    assert found["left_bytes"] == {"GPU 0 GPU 24 GiB": 0, "GPU 1 GPU 12 GiB": 1024 * MIB}


def test_what_engines_of_ours_hold_counts_as_free(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    card = "live: true\ngpus: [{{name: A, total_mib: 24576, used_mib: 20000, processes: {}}}]\n"
    text = "devices: {gpus: card.yaml, overhead_mib: 0}"
    # This process is the daemon: it listens, and started the engine.
    with (
        subprocess.Popen(["/bin/sleep", "600"], env={MARK: new_mark()}) as engine,
        socket.create_server(("127.0.0.1", 0)) as daemon,
    ):
        try:
            port = daemon.getsockname()[1]
            process = f"[{{pid: {engine.pid}, name: engine, used_mib: 20000}}]"
            (tmp_path / "card.yaml").write_text(card.format(process))
            at_port = f"server: {{port: {port}}}\n{text}"
            assert held(capsys, tmp_path, at_port, a="18GiB", b="5GiB")["waiting"] == []
            # The daemon of another configuration listens elsewhere, or not now.
            another = f"server: {{port: 0}}\n{text}"
            assert held(capsys, tmp_path, another, a="18GiB", b="3GiB")["nowhere"] == ["a"]
            code = "import socket as s; d = s.create_server(('', 0)); print(d.getsockname()[1]); input()"
            with subprocess.Popen([sys.executable, "-uc", code], stdin=-1, stdout=-1, text=True) as other:
                assert other.stdout is not None
                another = f"server: {{port: {other.stdout.readline().strip()}}}\n{text}"
                assert held(capsys, tmp_path, another, a="18GiB", b="3GiB")["nowhere"] == ["a"]
                other.kill()
        finally:
            engine.kill()
    (tmp_path / "card.yaml").write_text(card.format(f"[{{pid: {os.getpid()}, name: x, used_mib: 20000}}]"))
    assert held(capsys, tmp_path, text, a="18GiB", b="3GiB")["nowhere"] == ["a"]


def test_a_card_for_one_process_at_a_time_is_told_before_anything_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "card.yaml").write_text(
        "gpus: [{name: A, total_mib: 24576, compute_mode: exclusive_process}]\n"
    )
    found = held(capsys, tmp_path, "devices: {gpus: card.yaml, mps: off}", a="1GiB", b="1GiB")
    assert (len(found["together"]), len(found["waiting"])) == (1, 1)
    (warning,) = found["warnings"]
    assert warning.startswith("GPU 0 A is for 2 models, one at a time: its compute mode is Exclusive_Process")
    assert "MPS is off: set `devices.mps: auto`" in warning
    assert held(capsys, tmp_path, "devices: {gpus: card.yaml, mps: off}", a="1GiB")["warnings"] == []


def test_csv_has_what_each_model_leaves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    held(capsys, tmp_path, "devices: {gpus: '8GiB,4GiB', overhead_mib: 0}", a="3GiB", b="6GiB", c="20GiB")
    assert main(["models", "--csv"]) == 0
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [(row["name"], row["fits"]) for row in rows] == [("b", "True"), ("a", "True"), ("c", "False")]
    assert rows[0]["needed_bytes"] == str(6 * 1024 * MIB)
    left = [(row["left_bytes GPU 0 GPU 8 GiB"], row["left_bytes GPU 1 GPU 4 GiB"]) for row in rows]
    assert left == [(str(1024 * MIB), str(3072 * MIB)), (str(1024 * MIB), "0"), ("", "")]


def test_a_check_lists_faults_of_values_of_what_they_mean_and_of_devices_together(
    capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path
) -> None:
    (tmp_path / "cotenant.yaml").write_text(
        "devices: {gpus: '24GiB', mps: offf}\n"
        "models:\n"
        "  - {name: a, path: absent.gguf}\n"
        "  - {name: b, path: models/llama.gguf, ctx: many}\n"
        "  - {name: b, path: models/llama.gguf, gpus: [9]}\n"
        "  - {name: c, pth: models/llama.gguf}\n"
    )
    assert main(["models", "--check"]) == 2
    found = [line.split(": ")[0:2] for line in capsys.readouterr().out.splitlines()]
    places = ["devices.mps", "models[0].path", "models[1].ctx", "models[2].name", "models[3].pth"]
    lines = [f"cotenant.yaml, line {number}" for number in (1, 3, 4, 5, 6)]
    assert found == [*map(list, zip(lines, places, strict=True)), ["cotenant.yaml", "gpus of b"]]


def test_a_check_lists_all_faults_of_a_file_of_gpus_with_their_lines(
    capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path
) -> None:
    (tmp_path / "cards.yaml").write_text(
        "gpus:\n  - {name: A, total_mib: 9}\n  - {name: B, totl_mib: 9}\n  - {name: C, total_mib: much}\n"
    )
    (tmp_path / "cotenant.yaml").write_text("devices: {gpus: cards.yaml}\nmodels_dir: models\n")
    assert main(["models", "--check"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "cards.yaml, line 3, entry 2: unknown key 'totl_mib'" in line
    assert "cards.yaml, line 4, entry 3: 'much' is not a size" in line


def test_models_of_an_ollama_daemon_are_listed_with_what_they_need(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "cotenant.yaml"
    with ollama_daemon() as port:
        file.write_text(f"ollama: {{address: 'http://127.0.0.1:{port}'}}\n")
        assert main(["models", "--gpus", "24GiB", "--json"]) == 0
        found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["models"]}
        assert main(["models", "--gpus", "24GiB"]) == 0
        table = capsys.readouterr().out
    assert {name: each["file_bytes"] // MIB for name, each in found.items()} == {
        "tiny": 300,
        "embedder": 100,
        "huge:70b": 40000,
    }
    assert {each["engine"] for each in found.values()} == {"ollama"}
    assert found["tiny"]["needed_bytes"] > 300 * MIB
    assert "Too large even alone: huge:70b." in table


@pytest.mark.parametrize("silent", [True, False])
def test_an_ollama_daemon_that_does_not_answer_is_told_within_the_bound(
    capsys: pytest.CaptureFixture[str], models: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr("cotenant.daemon.monitors.ollama_models.ASK_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if not silent:
            listening.close()
        with (models.parent / "cotenant.yaml").open("a") as file:
            file.write(f"ollama: {{address: '{url}'}}\n")
        assert main(["models", "--gpus", "24GiB"]) == 0
    shown = capsys.readouterr()
    assert f"Problem: cotenant.yaml: no Ollama answers at {url}: its models are not listed" in shown.out
    assert "l8    Q4_K_M" in shown.out
    assert shown.err == ""
