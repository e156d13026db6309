"""`cotenant pull`, and the model that the demo takes when none is given."""

import json
from pathlib import Path

import pytest

from cotenant.cli import demo
from cotenant.cli.main import main
from tests.support.http.model_hub import StandInHub, standing_in

pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 64


@pytest.fixture
def hub(monkeypatch, tmp_path):
    repositories = {
        "org/repo": {"a-Q4_K_M.gguf": DATA},
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF": {"q-q4_k_m.gguf": DATA},
    }
    with standing_in(StandInHub(repositories)) as hub:
        for name in ("COTENANT_MODELS_DIR", "COTENANT_CONFIG", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield hub


def test_a_model_is_pulled_into_the_configured_folder(hub, tmp_path, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "cotenant.yaml").write_text("models_dir: models\n")
    assert main(["pull", "hf.co/org/repo:Q4_K_M"]) == 0
    printed = capsys.readouterr().out.splitlines()
    path = tmp_path / "models" / "org--repo" / "a-Q4_K_M.gguf"
    assert path.read_bytes() == DATA
    assert printed == [
        "asking the hub for hf.co/org/repo:Q4_K_M",
        "1 file, 16 KiB",
        "pulling a-Q4_K_M.gguf (16 KiB)",
        "verifying a-Q4_K_M.gguf (16 KiB)",
        str(path),
    ]


def test_steps_are_told_as_json(hub, tmp_path, capsys):
    assert main(["pull", "hf.co/org/repo", "--models-dir", str(tmp_path / "new"), "--json"]) == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert steps[2]["total_bytes"] == len(DATA)
    assert Path(steps[-1]["files"][0]).read_bytes() == DATA


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["llama3.2", "--models-dir", "m"], 2, "names no model that can be pulled"),
        (["hf.co/org/repo"], 2, "no folder to pull models to"),
        (["hf.co/org/none", "--models-dir", "m"], 1, "no org/none on the hub"),
        (["hf.co/org/repo:Q2_K", "--models-dir", "m"], 1, "has no Q2_K"),
    ],
)
def test_what_cannot_be_pulled_is_told_in_one_line(hub, argv, status, says, capsys):
    assert main(["pull", *argv]) == status
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 2


def test_the_demo_takes_a_model_of_the_hub_and_keeps_it(hub, capsys):
    path = demo._from_hub()
    assert path is not None
    assert path.read_bytes() == DATA
    asked = len(hub.asked)
    assert demo._from_hub() == path
    assert len(hub.asked) == asked


def test_the_demo_does_without_a_hub_that_cannot_be_reached(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert demo._from_hub() is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert demo._from_hub() is None
    assert "It cannot be pulled: HF_HUB_OFFLINE is set" in capsys.readouterr().out
