"""A conversation goes on after its model made room for another, and leaves nothing behind."""

import json
import random
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.serving import Serving

EAGER = "tests.support.daemon.eager_slots"
pytestmark = [pytest.mark.engine, pytest.mark.slow]


def ask(daemon: Serving, model: str, messages: list[dict[str, str]]) -> tuple[str, int]:
    """Return the answer, and how many tokens of the prompt the engine had already."""
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(f"{daemon.address()}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer["choices"][0]["message"]["content"], answer["timings"]["cache_n"]


def test_a_model_that_made_room_finds_its_conversation_again(tmp_path: Path, model: Path) -> None:
    other = tmp_path / "other.gguf"
    other.hardlink_to(model)
    kept = tmp_path / "kept"
    settings = {
        "warm": {"kv_dir": str(kept), "kv_mib": 100},
        "defaults": {"ctx": 4096, "parallel": 2, "max_loaded": 1},
        "devices": {"reserve_mib": 10},
        "models": [{"name": "a", "path": str(model)}, {"name": "b", "path": str(other)}],
    }
    config = tmp_path / "cotenant.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    rng = random.Random(2)
    said = " ".join(rng.choice("bdgkl") + rng.choice("aeiou") for _ in range(600))
    talk = [{"role": "user", "content": said}]
    argv = ["serve", "--config", str(config), "--port", "0"]
    with Serving(argv, tmp_path / "state", module=EAGER) as daemon:
        answer, cached = ask(daemon, "a", talk)
        assert cached == 0
        ask(daemon, "b", [{"role": "user", "content": "ba"}])
        daemon.wait_for(r"a: 1 slot of 6\d\d tokens saved")
        talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "ba"}]
        assert ask(daemon, "a", talk)[1] > 600
        ask(daemon, "b", [{"role": "user", "content": "ba"}])
        assert len([*kept.rglob("*.slot")]) == 1
        daemon.process.kill()
        daemon.process.wait()
    assert len([*kept.rglob("*.slot")]) == 1
    with Serving(argv, tmp_path / "state") as daemon:
        daemon.address()
        assert not [*kept.rglob("*.slot")]
        assert len([*kept.iterdir()]) == 1
        daemon.terminate()
    assert not [*kept.iterdir()]
