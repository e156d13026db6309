"""What a daemon logs of its requests, replayed: the simulator loads and unloads as the daemon did."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from tests.support.daemon.api import port_of, story
from tests.support.daemon.serving import Serving
from tests.support.engines.orders import fake_server
from tests.support.http.client import post
from tests.support.models.gguf_models import build_tiny_llama

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NAMES = ("ada", "ben", "cleo")
ASKED = ("ada", "ben", "cleo", "ada", "cleo", "ben", "ada")


def configuration(folder: Path) -> Path:
    """Write a configuration of three models, of which two fit on the card, always the first and one other."""
    model = build_tiny_llama(folder / "tiny.gguf")
    config = {
        "server": {"request_log": "requests.jsonl"},
        "devices": {"reserve_mib": 100, "min_budget_mib": 100, "gpus": "1300MiB"},
        "defaults": {"keep_alive": "forever", "parallel": 2},
        "scheduling": {"policy": "lru", "min_residency": 0},
        "models": [
            {"name": name, "path": str(model), "aliases": [f"{name}-1"], "pinned": name == "ada"}
            for name in NAMES
        ],
    }
    path = folder / "cotenant.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def done(daemon: Serving, kind: str) -> int:
    return sum(decision["kind"] == kind for name in NAMES for decision in story(daemon, name))


def test_a_replay_of_a_daemons_own_log_loads_and_evicts_as_the_daemon_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tmp_path)
    state = tmp_path / "state"
    argv = ["serve", "--config", str(config), "--port", "0", "--llama-server", str(fake_server(tmp_path))]
    with Serving(argv, state) as daemon:
        daemon.address()
        for number, name in enumerate(ASKED):
            body = {"model": f"{name}-1" if number % 2 else name, "prompt": "x", "max_tokens": 2}
            assert asyncio.run(post(port_of(daemon), "/v1/completions", body)).status == 200
        loads, evictions = done(daemon, "load"), done(daemon, "evict")
        assert daemon.terminate() == 0
    assert (loads, evictions) == (4, 2)
    logged = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert tuple(line["model"] for line in logged) == ASKED
    monkeypatch.setenv("COTENANT_STATE_DIR", str(state))
    told = replayed(tmp_path / "requests.jsonl", config, capsys)
    (variant,) = told["variants"]
    assert (variant["total"]["loads"], variant["total"]["evictions"]) == (loads, evictions)
    assert variant["total"]["answered"] == len(ASKED)
    assert {model["name"]: model["loads"] for model in variant["models"]} == {"ada": 1, "ben": 2, "cleo": 1}
    with sqlite3.connect(state / "cotenant.db") as database:
        seen = [seconds for (seconds,) in database.execute("SELECT seconds FROM loads WHERE model = 'ada'")]
    assert min(seen) <= variant["models"][0]["load_s"] <= max(seen), "loads take what they took"


def replayed(log: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Replay at a tenth of the speed, so that the spread of load times makes no two of them meet."""
    assert main(["simulate", str(log), "--config", str(config), "--speed", "0.1", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told
