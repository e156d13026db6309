"""What is read of the daemon's own log of requests, and the YAML of advice."""

import json
import math
from pathlib import Path

import pytest
import yaml

from cotenant.clock import ManualClock
from cotenant.config.settings import read_configuration
from cotenant.daemon import workload
from cotenant.daemon.workload import Workload, advice_as_json, recorded
from cotenant.demo_model import write_demo_model
from cotenant.hardware.gpus.inventory import probe
from cotenant.simulation.advise import NEEDED_REQUESTS, Advice, Change, Interval


def lines(first: int, count: int) -> str:
    return "".join(
        json.dumps({"at": 1e9 + n, "model": f"m{n}", "service_s": 1.0}) + "\n"
        for n in range(first, first + count)
    )


def names(log: Path) -> list[str]:
    found = recorded(log)
    return [] if found is None else [request.model for request in found.requests]


def test_rotated_files_are_read_and_a_line_that_is_being_written_is_not(tmp_path: Path):
    log = tmp_path / "requests.jsonl"
    assert recorded(log) is None
    log.write_text('{"at": 1')
    assert recorded(log) is None
    log.write_text(lines(5, 3) + '{"at": 1, "mo')
    (tmp_path / "requests.jsonl.1").write_text(lines(2, 3))
    (tmp_path / "requests.jsonl.2").write_text(lines(0, 2))
    assert names(log) == [f"m{n}" for n in range(8)]


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = tmp_path / "requests.jsonl"
    log.write_text(lines(100, 10))
    (tmp_path / "requests.jsonl.1").write_text(lines(0, 100))
    monkeypatch.setattr(workload, "_LOG_BYTES", len(lines(100, 10)) + len(lines(95, 5)) + 7)
    assert names(log) == [f"m{n}" for n in range(95, 110)]
    monkeypatch.setattr(workload, "_LOG_BYTES", len(lines(107, 3)) + 1)
    assert names(log) == ["m107", "m108", "m109"]


def test_the_yaml_for_a_model_of_the_folder_names_its_file_so_that_the_daemon_takes_it(tmp_path: Path):
    (tmp_path / "models").mkdir()
    write_demo_model(tmp_path / "models" / "ada.gguf")
    path = tmp_path / "cotenant.yaml"
    settings = {"models_dir": str(tmp_path / "models"), "devices": {"gpus": "4GiB"}}
    path.write_text(yaml.safe_dump(settings))
    at = Workload((), read_configuration(path), probe("4GiB", ManualClock()).inventory())
    nothing = Interval(0.0, 0.0, 0.0)
    changes = (
        Change(("models", "ada", "parallel"), 4, 8, nothing),
        Change(("scheduling", "policy"), "gdsf", "lru", nothing),
        Change(("models", "ada", "pinned"), False, True, nothing),
        Change(("models", "ada", "keep_alive"), 300.0, math.inf, nothing),
    )
    told = advice_as_json(Advice(NEEDED_REQUESTS, 1.0, 0, changes=changes, gain=nothing), at, {})
    path.write_text(yaml.safe_dump(settings | yaml.safe_load(told["yaml"])))
    found = read_configuration(path)
    (ada,) = found.models
    assert (ada.recipe.parallel, ada.pinned, ada.keep_alive_s) == (8, True, None)
    assert found.scheduling.policy == "lru"
