"""The command as a user types it, in a process of its own where its exit matters."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from cotenant.config.settings import read_configuration
from cotenant.demo_model import write_demo_model
from tests.support.engines.orders import fake_server
from tests.support.models.vision import build_tiny_projector

REHEARSED = """\
0.0 I print: | memory breakdown [MiB] | total   free    self   model   context   compute    unaccounted |
0.0 I print: |   - Host               |                   20 =     4 +       6 +      10                |
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "Tiny-Demo-F16.gguf"
    write_demo_model(path)
    return path


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def text_value(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    try:
        status = main(argv)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.startswith("cotenant"), told
    assert told.count("\n") == 2, f"not one line and a hint: {told}"
    assert "  hint: " in told
    return status, told


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["analyze"], "no model is given"),
        (["analyze", "/no/such/file.gguf"], "/no/such/file.gguf does not exist"),
        (["analyze", "."], "is a directory"),
        (["plan", __file__], "is not a GGUF file"),
        (["plan", "--gpus", "24parsecs"], "24parsecs"),
        (["plan", "--gpus", "2x24GiB", "--devices", "7"], "'7' names no device"),
        (["plan", "--n-ctx", "lots"], "--n-ctx 'lots'"),
        (["plan", "--n-ctx", "2000000000"], "--n-ctx '2000000000'"),
        (["plan", "--parallel", "0"], "--parallel '0'"),
        (["plan", "--use-fit-params", "--tensor-split", "1,1"], "and --tensor-split sets it"),
        (["analyze", __file__, "--use-fit-params", "--n-gpu-layers", "3"], "and --n-gpu-layers sets it"),
        (["serve", __file__, "--use-fit-params", "--split-mode", "row"], "and --split-mode sets it"),
        (["plan", "--cache-type-k", "q9"], "--cache-type-k 'q9'"),
        (["plan", "--n-gpu-layers", "-7"], "--n-gpu-layers"),
        (["plan", "--tensor-split", "a,b"], "error: --tensor-split 'a,b': 'a' is not a number"),
        (["serve", "--timeout", "never"], "error: --timeout 'never' is not a duration"),
        (["plan", "--smart-split", "--tensor-split", "1,2"], "exclude each other"),
        (["gpus", "--device-order", "best"], "--device-order 'best' is not known"),
        (["levitate"], "invalid choice: 'levitate'"),
        (["plan", "--n-cxt", "1"], "unrecognized arguments: --n-cxt"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_input_is_one_clear_line_with_a_hint(
    capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    status, told = fails(capsys, *argv)
    assert says in told
    assert status in (1, 2)


def test_a_wrong_environment_variable_is_told_like_a_wrong_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTENANT_N_CTX", "lots")
    assert "COTENANT_N_CTX" in fails(capsys, "plan")[1]
    monkeypatch.delenv("COTENANT_N_CTX")
    monkeypatch.setenv("COTENANT_KV_UNIFIED", "perhaps")
    assert "COTENANT_KV_UNIFIED='perhaps'" in fails(capsys, "plan")[1]


def test_a_variable_is_named_only_where_it_is_the_one_that_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["logs", "llama", "--lines", "-1"]) == 2
    assert "COTENANT_" not in capsys.readouterr().err, "no variable sets it"
    monkeypatch.setenv("COTENANT_N_CTX", "many")
    assert main(["plan"]) == 2
    assert "COTENANT_N_CTX sets it too" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused_with_what_would(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    argv = ["plan", str(model), "--gpus", "4GiB", "--n-ctx", "4194304"]
    assert main(argv) == 3
    shown = capsys.readouterr().out
    assert "DOES NOT FIT" in shown
    assert "--n-ctx " in shown
    assert main([*argv, "--json"]) == 3
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is False
    assert plan["refusal"]
    assert plan["shortfalls"][0]["missing_bytes"] > 0
    status, told = fails(capsys, "serve", str(model), *argv[2:], "--port", "0")
    assert (status, "does not fit" in told) == (3, True)


@pytest.mark.parametrize("command", ["plan", "analyze"])
def test_the_plan_as_json_has_the_fixed_fields(
    capsys: pytest.CaptureFixture[str], model: Path, command: str
) -> None:
    assert main([command, "--model", str(model), "--gpus", "24GiB,24GiB,12GiB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["model"] == "Tiny-Demo-F16"
    assert plan["n_gpu_layers"] == plan["n_layers"] + 1 == sum(plan["tensor_split"])
    assert len(plan["devices"]) == len(plan["tensor_split"]) == 3
    used = plan["devices"][0]
    assert used["layers"] == [0, plan["n_layers"] - 1]
    assert used["planned_bytes"] == sum(used["parts"].values())
    assert set(used["parts"]) == {"weights", "kv", "compute", "overhead"}
    assert plan["devices"][2]["layers"] is None
    assert plan["refusal"] is None


def test_leaving_the_layout_to_the_engine_is_told_or_refused(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    assert main(["plan", str(model), "--gpus", "24GiB", "--use-fit-params"]) == 0
    assert "Warning: --use-fit-params has no effect" in capsys.readouterr().out
    status, told = fails(capsys, "analyze", str(model), "--gpus", "24GiB", "--use-fit-params", "--verify")
    assert (status, "--verify" in told) == (2, True)
    config = tmp_path / "cotenant.yaml"
    config.write_text(f"models: [{{path: {model}, n_gpu_layers: 2}}]")
    status, told = fails(capsys, "serve", "--config", str(config), "--use-fit-params", "--port", "0")
    assert (status, "Tiny-Demo-F16: --use-fit-params" in told) == (2, True)


def test_the_projector_beside_a_model_is_planned_as_models_dir_serves_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "Tiny-F16.gguf"
    write_demo_model(path)
    alone = planned(capsys, "plan", str(path))
    mmproj = build_tiny_projector(tmp_path / "mmproj-Tiny-F16.gguf")
    (served,) = read_configuration(None, environment={}, flags={"models_dir": tmp_path}).models
    assert served.projector_path == mmproj
    for command in ("plan", "analyze"):
        plan = planned(capsys, command, str(path))
        assert plan["projector"] == {"path": str(mmproj), "bytes": served.projector.weights}
        assert weights(plan) == weights(alone) + served.projector.weights
        without = planned(capsys, command, str(path), "--mmproj", "none")
        assert (without["projector"], weights(without)) == (None, weights(alone))
        assert main([command, str(path), "--gpus", "24GiB"]) == 0
        assert "projector mmproj-Tiny-F16.gguf (" in capsys.readouterr().out


def test_a_rehearsal_compares_without_the_projector(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MORE_HELP", "-fit,  --fit [on|off]   fit the unset arguments")
    monkeypatch.setenv("FAKE_SAYS", REHEARSED)
    write_demo_model(tmp_path / "Tiny-F16.gguf")
    build_tiny_projector(tmp_path / "mmproj-Tiny-F16.gguf")
    command = ["analyze", str(tmp_path / "Tiny-F16.gguf"), "--verify", "--json"]
    rows = []
    for mmproj in ("none", str(tmp_path / "mmproj-Tiny-F16.gguf")):
        for gpus in ([], ["--gpus", "24GiB"]):
            server = ["--llama-server", str(fake_server(tmp_path)), "--mmproj", mmproj]
            assert main([*command, *gpus, *server]) == 0
            rows += json.loads(capsys.readouterr().out)["verification"]["devices"]
    assert len({row["planned"]["weights"] for row in rows}) == 1


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--gpus", "24GiB", "--json"]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


def weights(plan: dict[str, Any]) -> int:
    (device,) = plan["devices"]
    return int(device["parts"]["weights"])


def test_flags_beat_the_environment(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTENANT_GPUS", "8GiB")
    monkeypatch.setenv("COTENANT_N_CTX", "512")
    monkeypatch.setenv("COTENANT_KV_UNIFIED", "no")
    assert main(["plan", str(model), "--n-ctx", "2048"]) == 0
    shown = capsys.readouterr().out
    assert "2,048 tokens for 4 slots each with its own cache" in shown
    assert "GPU 8 GiB" in shown


def test_without_a_model_plan_shows_the_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpus", "24GiB,1GiB", "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert devices[0]["budget_bytes"] == 23 << 30
    assert devices[1]["budget_bytes"] == 0
    assert "under the minimum" in devices[1]["left_out"]


def test_analyze_draws_a_bar_per_gpu_and_the_split_to_use(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    assert main(["analyze", str(model), "--gpus", "RTX A5500:24564:19304,RTX A400:4094:329"]) == 0
    shown = capsys.readouterr().out
    for said in ("Total size", "Avg layer size", "Layer size range", "RTX A5500", "#0-3", "TENSOR SPLIT:"):
        assert said in shown
    assert "×" in shown


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_file_says_commands_no_terminal(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, whole: bool
) -> None:
    data = model.read_bytes()
    named = data.index(text_value("general.name"))
    at = named + len(text_value("general.name")) + 12
    data = data[:at] + b"\x1b[31" + data[at + 4 :]
    hostile = tmp_path / "a\x1b[31mb.gguf"
    hostile.write_bytes(data if whole else data[:-100])
    assert main(["analyze", str(hostile)]) == (0 if whole else 1)
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown
    assert "a\ufffd[31mb.gguf" in shown


def test_a_plan_numbers_gpus_as_the_driver_does(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["plan", str(model), "--gpus", "RTX A400:4094:329,RTX A5500:24564"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^  (\S+ \d)", shown, re.MULTILINE) == ["GPU 1", "GPU 0", "GPU 1", "GPU 0"]
    assert "(layers on GPU 1, GPU 0, in this order)" in shown


def test_what_the_engine_rehearsed_is_told_in_the_same_json(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MORE_HELP", "-fit,  --fit [on|off]   fit the unset arguments")
    monkeypatch.setenv("FAKE_SAYS", REHEARSED)
    server = str(fake_server(tmp_path))
    command = ["analyze", str(model), "--gpus", "24GiB", "--verify", "--llama-server", server]
    assert main([*command, "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)["verification"]
    assert verified["engine"].startswith("llama-server ")
    (host,) = verified["devices"]
    assert (host["uuid"], host["reported"]["weights"]) == (None, 4 << 20)
    assert host["difference_bytes"] is not None
    assert main(command) == 0
    assert "Planned / rehearsed by llama-server " in capsys.readouterr().out
    small = ["--reserve-mib", "0", "--min-budget-mib", "0", "--gpus", "1MiB"]
    assert main([*command, *small, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["verification"] is None


def test_a_public_address_needs_a_key(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    status, told = fails(capsys, "serve", str(model), "--host", "0.0.0.0", "--port", "0")
    assert (status, "no API key" in told) == (2, True)


def test_a_taken_port_is_told_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        _, told = fails(capsys, "serve", str(model), "--port", port)
    assert port in told


def test_a_reader_that_leaves_early_is_no_fault(model: Path) -> None:
    command = [sys.executable, "-m", "cotenant.cli.main", "analyze", str(model), "--gpus", "24GiB", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_every_command_describes_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "analyze", "plan", "gpus", "engine", "demo"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert command in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["ps", "--help"]])
def test_a_command_imports_no_other_commands(arguments: list[str]) -> None:
    shown = "print(*(name for name in sys.modules if name.startswith('cotenant.cli.')))"
    program = (
        f"import atexit, sys; atexit.register(lambda: {shown}); from cotenant.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True)
    imported = done.stdout.decode().splitlines()[-1].split()
    assert "cotenant.cli.main" in imported
    assert ("cotenant.cli.ps" in imported) == ("ps" in arguments)
    assert "cotenant.cli.serve" not in imported
