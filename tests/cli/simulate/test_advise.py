"""`cotenant advise`: logs, the YAML it prints, and what is wrong."""

import json
from pathlib import Path

import pytest
import yaml

from cotenant.cli.main import main
from cotenant.config.settings import read_configuration
from cotenant.demo_model import write_demo_model
from tests.cli.simulate.test_command import HEAD, _no_settings_from_outside

__all__ = ["_no_settings_from_outside"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two models of which both fit, that are unloaded before their next request."""
    (tmp_path / "models").mkdir()
    write_demo_model(tmp_path / "models" / "ada.gguf")
    write_demo_model(tmp_path / "ben.gguf")
    path = tmp_path / "cotenant.yaml"
    settings = {
        "models_dir": str(tmp_path / "models"),
        "models": [{"name": "ben", "path": str(tmp_path / "ben.gguf"), "aliases": ["gpt-4o-mini"]}],
        "defaults": {"keep_alive": "20s", "ctx": 512},
        "devices": {"gpus": "4GiB", "reserve_mib": 100},
        "server": {"request_log": str(tmp_path / "requests.jsonl")},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def line(at: float, model: str) -> str:
    return json.dumps({"at": 1.7e9 + at, "model": model, "status": 200, "service_s": 2.0}) + "\n"


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["advise", *flags]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "hint: " in told.err
    return told.err


def test_the_logs_that_the_daemon_kept_are_replayed_and_the_yaml_is_what_to_change(config, tmp_path, capsys):
    lines = [line(25.0 * n, ("ada", "gpt-4o-mini")[n % 2]) for n in range(210)]
    (tmp_path / "requests.jsonl.1").write_text("".join(lines[:150]))
    (tmp_path / "requests.jsonl").write_text("".join([*lines[150:], line(1, "stranger")]))
    assert main(["advise", "--config", str(config)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("210 requests over 1 h 27 m; ")
    assert "\ndefaults:\n  keep_alive: 2m  # now 20s\n" in text
    assert "Left out: 1 request for unknown models." in text
    assert main(["advise", "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {each["model"]: each["requests"] for each in told["models"]} == {"ada": 105, "ben": 105}
    settings = yaml.safe_load(config.read_text())
    settings["defaults"] |= yaml.safe_load(told["yaml"])["defaults"]
    config.write_text(yaml.safe_dump(settings))
    assert read_configuration(config).defaults.keep_alive_s == 120.0
    assert main(["advise", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == []


def test_too_short_a_log_is_told(config, tmp_path, capsys):
    (tmp_path / "few.csv").write_text(HEAD + "".join(f"{n},ben,10,60\n" for n in range(50)))
    assert main(["advise", "--config", str(config), "--log", str(tmp_path / "few.csv")]) == 0
    told = capsys.readouterr().out
    assert "Not enough log: 50 requests for the models served, and 200 are needed." in told


def test_without_a_log_it_says_how_to_keep_one(config, tmp_path, capsys):
    assert "requests.jsonl has no requests yet" in refused(capsys, "--config", str(config))
    assert "there is no log of requests" in refused(capsys, "--model", "a=1GiB")
    assert "gone.csv cannot be read" in refused(capsys, "--model", "a=1GiB", "--log", "gone.csv")
