"""A real Ollama: as an engine, and as what the stand-in and our own dialect of it are held to."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.engines.fake_programs import ollama_daemon
from tests.support.engines.real_ollama import RealOllama, real_ollama
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ollama, pytest.mark.engine, pytest.mark.slow]

SHORT = {"num_predict": 3, "temperature": 0, "seed": 1}
HELLO = [{"role": "user", "content": "Hello"}]
LONG = "one two three " * 700

Request = tuple[str, str, object]

OF_THE_STAND_IN: list[Request] = [
    ("GET", "/api/version", None),
    ("GET", "/api/tags", None),
    ("POST", "/api/show", {"model": "tiny"}),
    ("POST", "/api/show", {"model": "embedder"}),
    ("POST", "/api/generate", {"model": "tiny", "keep_alive": -1}),
    ("GET", "/api/ps", None),
    ("POST", "/api/generate", {"model": "tiny", "keep_alive": 0}),
    ("POST", "/api/generate", {"model": "embedder", "keep_alive": -1}),
    ("POST", "/api/generate", {"model": "embedder", "keep_alive": 0}),
    ("POST", "/api/embed", {"model": "embedder", "keep_alive": -1}),
    ("POST", "/api/generate", {"model": "none"}),
    ("POST", "/v1/completions", {"model": "none", "prompt": "a"}),
    ("POST", "/api/copy", {"source": "tiny", "destination": "twin"}),
    ("GET", "/api/none", None),
]

OF_THE_DIALECT: list[Request] = [
    ("HEAD", "/", None),
    ("GET", "/api/version", None),
    ("GET", "/api/tags", None),
    ("POST", "/api/show", {"model": "tiny"}),
    ("POST", "/api/show", {"name": "embedder:latest"}),
    ("POST", "/api/show", {"model": "none"}),
    ("POST", "/api/show", {}),
    ("POST", "/api/generate", {"model": "tiny", "keep_alive": "1h30m"}),
    ("GET", "/api/ps", None),
    ("POST", "/api/generate", {"model": "tiny", "prompt": "Hi", "options": SHORT}),
    ("POST", "/api/generate", {"model": "tiny", "prompt": "Hi", "options": SHORT, "stream": False}),
    ("POST", "/api/generate", {"model": "tiny", "prompt": "Hi", "options": SHORT, "raw": True}),
    ("POST", "/api/generate", {"model": "tiny", "prompt": "Hi", "raw": True, "system": "x"}),
    ("POST", "/api/generate", {"model": "tiny", "prompt": "Hi", "keep_alive": "soon"}),
    ("POST", "/api/generate", {"model": "tiny", "prompt": "Hi", "stream": "yes"}),
    ("POST", "/api/generate", {"model": "none", "prompt": "Hi"}),
    ("POST", "/api/generate", {"model": "embedder", "prompt": "Hi"}),
    ("POST", "/api/generate", {"model": "embedder"}),
    ("POST", "/api/generate", b"{"),
    ("POST", "/api/chat", {"model": "TINY:latest", "messages": HELLO, "options": SHORT}),
    ("POST", "/api/chat", {"model": "library/tiny", "messages": HELLO, "options": SHORT, "stream": False}),
    (
        "POST",
        "/api/chat",
        {"model": "tiny", "messages": HELLO, "options": SHORT, "logprobs": True, "top_logprobs": 2},
    ),
    ("POST", "/api/chat", {"model": "tiny", "messages": HELLO, "top_logprobs": 21}),
    (
        "POST",
        "/api/chat",
        {"model": "tiny", "messages": [{"role": "tool", "content": "x"}], "options": SHORT},
    ),
    ("POST", "/api/chat", {"model": "tiny"}),
    ("POST", "/api/chat", {"model": "tiny", "messages": "x"}),
    ("POST", "/api/chat", {"model": "tiny:7b", "messages": HELLO}),
    ("POST", "/api/chat", {"model": "embedder", "messages": HELLO}),
    ("POST", "/api/chat", {"messages": HELLO}),
    ("GET", "/api/chat", None),
    ("POST", "/api/embed", {"model": "embedder", "input": "hi"}),
    ("POST", "/api/embed", {"model": "embedder", "input": ["hi", "you"], "dimensions": 4}),
    ("POST", "/api/embed", {"model": "embedder", "input": ["hi", LONG]}),
    ("POST", "/api/embed", {"model": "embedder", "input": LONG, "truncate": False}),
    ("POST", "/api/embed", {"model": "embedder", "input": []}),
    ("POST", "/api/embed", {"model": "embedder", "input": 3}),
    ("POST", "/api/embed", {"model": "none", "input": "hi"}),
    ("POST", "/api/embeddings", {"model": "embedder", "prompt": "hi"}),
    ("POST", "/api/embeddings", {"model": "embedder"}),
    ("DELETE", "/api/chat", None),
    ("POST", "/api/chat", {"model": "tiny", "keep_alive": 0}),
]

NOT_TOLD = {"license", "tensors", "requires", "context"}
"""Fields of Ollama's that our dialect leaves out on purpose: docs/ollama.md says why."""

SHOWN = ("architecture", "parameter_count", "block_count", "context_length", "embedding_length")
"""What it tells of `model_info`, which is all of a file's header with Ollama."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOllama]:
    with real_ollama(tmp_path_factory.mktemp("ollama")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("ours")
    (folder / "models").mkdir()
    build_tiny_llama(folder / "models" / "tiny.gguf")
    build_tiny_embedder(folder / "models" / "embedder.gguf")
    flags = ["--models-dir", str(folder / "models"), "--port", "0", "--n-ctx", "512", "--parallel", "1"]
    with Serving(["serve", *flags], folder / "state") as daemon:
        daemon.address()
        yield daemon


class Answer:
    """What one server says to a request: its status, its kind of content, and each line of its JSON."""

    def __init__(self, port: int, request: Request) -> None:
        method, path, body = request
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data)
        response = connection.getresponse()
        self.status = response.status
        self.kind = (response.getheader("content-type") or "").partition(";")[0]
        self.text = response.read().decode()
        connection.close()

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.text.splitlines()] if "json" in self.kind else []


def lacking(theirs: object, told: object, where: str = "") -> list[str]:
    """Return where an answer lacks a field that another has, or has one of another type."""
    if isinstance(theirs, dict):
        if not isinstance(told, dict):
            return [where]
        kept = [key for key in theirs if key not in NOT_TOLD]
        if where.endswith(".model_info"):
            kept = [key for key in kept if key.endswith(SHOWN)]
        return [fault for key in kept for fault in lacking(theirs[key], told.get(key), f"{where}.{key}")]
    if isinstance(theirs, list):
        if not isinstance(told, list):
            return [where]
        return lacking(theirs[0], told[0], f"{where}[]") if theirs and told else []
    numbers = (int, float)
    if isinstance(theirs, numbers) and isinstance(told, numbers):
        return []
    return [] if type(theirs) is type(told) else [where]


def spelled(request: Request) -> str:
    return f"{request[0]} {request[1]} {str(request[2])[:60]}"


def test_the_stand_in_answers_as_ollama_does(real: RealOllama) -> None:
    with ollama_daemon() as port:
        for request in OF_THE_STAND_IN:
            theirs, told = Answer(real.address.port, request), Answer(port, request)
            assert (told.status, told.kind if told.text else "") == (
                theirs.status,
                theirs.kind if theirs.text else "",
            ), spelled(request)
            for mine, line in zip(told.lines, theirs.lines, strict=True):
                assert not lacking(mine, line), f"{spelled(request)}: Ollama has no such field"
            if theirs.status >= 400:
                assert (told.lines or told.text) == (theirs.lines or theirs.text), spelled(request)


@pytest.mark.parametrize("request_", OF_THE_DIALECT, ids=spelled)
def test_our_dialect_has_what_ollama_answers(request_: Request, real: RealOllama, ours: Serving) -> None:
    theirs, told = Answer(real.address.port, request_), Answer(port_of(ours), request_)
    assert told.status == theirs.status, told.text
    if not theirs.lines:
        return
    assert told.kind == theirs.kind
    assert not lacking(theirs.lines[0], told.lines[0])
    assert not lacking(theirs.lines[-1], told.lines[-1])
    assert told.lines[-1].get("done_reason") == theirs.lines[-1].get("done_reason")


def test_embeddings_are_the_same_numbers_cut_texts_included(real: RealOllama, ours: Serving) -> None:
    request = ("POST", "/api/embed", {"model": "embedder", "input": ["one two", LONG]})
    theirs = Answer(real.address.port, request).lines[0]
    told = Answer(port_of(ours), request).lines[0]
    for mine, vector in zip(told["embeddings"], theirs["embeddings"], strict=True):
        assert mine == pytest.approx(vector, abs=1e-3)
    assert told["prompt_eval_count"] == pytest.approx(theirs["prompt_eval_count"], abs=4)


def test_ollamas_own_command_line_works_with_us(real: RealOllama, ours: Serving) -> None:
    host = f"http://127.0.0.1:{port_of(ours)}"
    assert "tiny:latest" in real.run("list", host=host)
    assert "completion" in real.run("show", "tiny", host=host)
    assert real.run("run", "tiny", "Hello", host=host).strip()
    assert real.run("run", "embedder", "Hello", host=host).startswith("[")
    assert "tiny:latest" in real.run("ps", host=host)
    assert "Error" not in real.run("stop", "tiny", host=host)
    assert "model 'none' not found" in real.run("show", "none", host=host)
    for command in (["rm", "tiny"], ["cp", "tiny", "other"], ["push", "tiny"]):
        assert "is not offered here" in real.run(*command, host=host)


def test_its_models_are_served_until_it_dies_and_again_when_it_is_back(tmp_path: Path) -> None:
    with real_ollama(tmp_path / "ollama") as hub:
        config = tmp_path / "cotenant.yaml"
        config.write_text(json.dumps({"ollama": {"address": hub.address.url}}), encoding="utf-8")
        flags = ["serve", "--config", str(config), "--port", "0", "--gpus", "8GiB"]
        with Serving(flags, tmp_path / "state") as daemon:

            def models() -> dict[str, Any]:
                listed = get(daemon, "/api/models")["models"]
                return {model["name"]: model for model in listed}

            def chat() -> Answer:
                body = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "stream": True}
                return Answer(port_of(daemon), ("POST", "/v1/chat/completions", body))

            daemon.address()
            wait_until(lambda: {"tiny", "embedder", "broken"} == set(models()))
            assert models()["embedder"]["kind"] == "embedding"
            first = chat()
            assert (first.status, first.kind) == (200, "text/event-stream"), first.text
            assert first.text.count("data: ") >= 3
            assert hub.loaded() == {"tiny:latest"}
            vectors = ("POST", "/v1/embeddings", {"model": "embedder", "input": "hi"})
            assert len(Answer(port_of(daemon), vectors).lines[0]["data"][0]["embedding"]) == 64
            refused = Answer(port_of(daemon), ("POST", "/v1/completions", {"model": "broken", "prompt": "a"}))
            assert refused.status in (400, 503)
            hub.kill()
            wait_until(lambda: models()["tiny"]["state"] not in ("ready", "draining"))
            assert chat().status in (502, 503)
            daemon.wait_for("no Ollama answers")
            hub.start()
            wait_until(lambda: chat().status == 200)
            assert hub.loaded() == {"tiny:latest"}
            assert daemon.terminate() == 0
            assert hub.loaded() == set(), "what was loaded for us is let go"
        assert "Traceback" not in daemon.output
