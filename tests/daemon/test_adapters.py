"""Models with adapters of their own, served by one real engine, in any order of requests."""

import random
import shutil
from pathlib import Path

import httpx
import pytest

from tests.support.daemon.serving import Serving
from tests.support.models.adapters import build_tiny_lora
from tests.support.models.gguf_models import build_tiny_llama

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CONFIG = """
server: {port: 0}
defaults: {parallel: 1, ctx: 1024}
models:
- {name: plain, path: plain.gguf}
- {name: base, path: tiny.gguf}
- {name: sql, base: base, lora: [sql.lora]}
- {name: tone, base: base, lora: [{path: tone.lora, scale: 0.5}]}
"""


def test_each_name_answers_as_if_it_were_alone_and_one_engine_serves_all(tmp_path: Path) -> None:
    build_tiny_llama(tmp_path / "tiny.gguf")
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "plain.gguf")
    for seed, name in enumerate(("sql", "tone"), 1):
        build_tiny_lora(tmp_path / f"{name}.lora", seed=seed)
    (tmp_path / "cotenant.yaml").write_text(CONFIG)
    with (
        Serving(["serve", "--config", str(tmp_path / "cotenant.yaml")], tmp_path / "state") as daemon,
        httpx.Client(base_url=daemon.address(), timeout=60) as client,
    ):

        def text(name: str, prompt: str) -> str:
            asked = {"model": name, "prompt": prompt, "max_tokens": 12, "temperature": 0}
            return str(client.post("/v1/completions", json=asked).json()["choices"][0]["text"])

        # One slot: llama.cpp would keep what it drops from it, whichever adapter has computed that.
        prompts = ("Once upon a time there was a house", "Every second Tuesday the baker sings")
        first = {(name, prompt): text(name, prompt) for name in ("plain",) for prompt in prompts}
        answers: dict[tuple[str, str], set[str]] = {}
        turns = [(name, prompt) for name in ("base", "sql", "tone") for prompt in prompts] * 4
        random.Random(17).shuffle(turns)
        for turn in turns:
            answers.setdefault(turn, set()).add(text(*turn))
        assert all(len(found) == 1 for found in answers.values()), answers
        for prompt in prompts:
            assert answers["base", prompt] == {first["plain", prompt]}
            assert len(set.union(*(answers[name, prompt] for name in ("base", "sql", "tone")))) == 3

        models = client.get("/api/models").json()["models"]
        assert [each["name"] for each in models] == ["plain", "base"]
        assert {"base", "sql", "tone"} <= {each["id"] for each in client.get("/v1/models").json()["data"]}
        (base,) = (each for each in models if each["name"] == "base")
        assert [Path(each["path"]).name for each in base["companions"]["adapters"]] == [
            "sql.lora",
            "tone.lora",
        ]
        host = base["placement"]["host"]
        assert abs(host["reported"]["weights"] - host["planned"]["weights"]) < 1 << 20
        claude = {"max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
        for name, status in (("sql", 400), ("base", 400), ("plain", 200)):
            reply = client.post("/v1/messages", json={"model": name, **claude})
            assert reply.status_code == status, reply.text
