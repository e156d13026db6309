"""What Open WebUI asks of its connections, replayed as it sends it against a running daemon: all is answered.

Its calls are those of its routers for Ollama, OpenAI, audio, images and retrieval (as of 2026), with the
headers that it sends.
"""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.daemon.serving import Serving
from tests.support.engines.media_server import tone
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama
from tests.support.models.vision import png
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow]

KEY = "sk-of-open-webui"
_CONFIGURATION = """\
server: {{host: 127.0.0.1, port: 0, keys: [{{name: open-webui, key: {key}, scope: operate}}]}}
devices: {{gpus: '24GiB'}}
defaults: {{ctx: 2048, parallel: 2}}
models_dir: {folder}/models
models:
  - {{name: talker, kind: speech, <<: &server {{engine: command, model: own, memory: 1GiB,
     command: ['{python}', -m, tests.support.engines.media_server, '{{port}}'],
     env: {{PYTHONPATH: '{root}'}}}}}}
  - {{name: hearer, kind: transcription, <<: *server}}
  - {{name: painter, kind: image, <<: *server}}
"""
USER = {
    "X-OpenWebUI-User-Name": "Jane Doe",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "jane@example.com",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "c-1",
}
HELLO = [{"role": "user", "content": "Hello"}]
FEW = {"max_tokens": 6}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("webui")
    (folder / "models").mkdir()
    build_tiny_llama(folder / "models" / "chatty.gguf")
    build_tiny_embedder(folder / "models" / "embedder.gguf")
    build_tiny_embedder(folder / "models" / "ranker.gguf", ranks=True)
    root = Path(__file__).parent.parent
    config = folder / "cotenant.yaml"
    config.write_text(_CONFIGURATION.format(key=KEY, folder=folder, python=sys.executable, root=root))
    config.chmod(0o600)
    with Serving(["serve", "--config", str(config)], folder / "state") as serving:
        serving.address()
        yield serving
        assert serving.terminate() == 0


@pytest.fixture
def webui(daemon: Serving) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}", **USER}
    with httpx.Client(base_url=daemon.address(), headers=headers, timeout=60) as client:
        yield client


def post(webui: httpx.Client, path: str, payload: Any) -> Any:
    """Post JSON as it does, and return what is answered, which is no error."""
    reply = webui.post(path, content=json.dumps(payload), headers={"Content-Type": "application/json"})
    assert reply.status_code == 200, reply.text
    kind = reply.headers["content-type"]
    if kind.startswith("text/event-stream"):
        lines = [line for line in reply.text.split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    if kind.startswith("application/x-ndjson"):
        return [json.loads(line) for line in reply.text.splitlines()]
    return reply.json() if kind.startswith("application/json") else reply.content


def get(webui: httpx.Client, path: str) -> Any:
    reply = webui.get(path, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200, reply.text
    return reply.json()


# A connection of OpenAI's kind, whose address ends in /v1.


def test_the_models_of_a_connection_are_listed_and_its_key_is_verified(webui: httpx.Client) -> None:
    names = {model["id"] for model in get(webui, "/v1/models")["data"]}
    assert names == {"chatty", "embedder", "ranker", "talker", "hearer", "painter"}
    assert webui.get("/v1/models", headers={"Authorization": "Bearer wrong"}).json()["error"]["message"]


def test_a_chat_streams_with_its_usage_and_titles_are_made_without_a_stream(webui: httpx.Client) -> None:
    chat = {
        "model": "chatty",
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "seed": 1,
        "stop": ["</s>"],
        **FEW,
    }
    *chunks, last = post(webui, "/v1/chat/completions", chat)
    assert last["usage"]["completion_tokens"] > 0
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    title = {"model": "chatty", "messages": HELLO, "stream": False, "max_completion_tokens": 6}
    assert post(webui, "/v1/chat/completions", title)["choices"][0]["message"]["content"]


def test_a_picture_for_a_model_that_sees_none_is_refused_in_words_that_it_shows(webui: httpx.Client) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(255, 0, 0)).decode()
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    chat = {"model": "chatty", "messages": [{"role": "user", "content": parts}], "stream": True}
    reply = webui.post("/v1/chat/completions", json=chat)
    assert (reply.status_code, reply.headers["content-type"]) == (400, "application/json")
    assert "does not support images" in reply.json()["error"]["message"]


def test_responses_are_made(webui: httpx.Client) -> None:
    asked = {"model": "chatty", "input": "Hello", "max_output_tokens": 6}
    assert post(webui, "/v1/responses", asked)["object"] == "response"


def test_documents_are_embedded_and_ranked(webui: httpx.Client) -> None:
    rows = post(webui, "/v1/embeddings", {"input": ["one", "two"], "model": "embedder"})["data"]
    assert [len(row["embedding"]) for row in rows] == [64, 64]
    ask = {"model": "ranker", "query": "one", "documents": ["one", "two", "three"], "top_n": 3}
    results = post(webui, "/v1/rerank", ask)["results"]
    assert sorted(each["index"] for each in results) == [0, 1, 2]
    assert all(isinstance(each["relevance_score"], float) for each in results)


def test_texts_are_spoken_and_recordings_heard(webui: httpx.Client) -> None:
    assert get(webui, "/v1/audio/models") == {"models": [{"id": "talker", "name": "talker"}]}
    voices = webui.get("/v1/audio/voices")  # where it gets an error, it offers OpenAI's voices
    assert (voices.status_code, voices.headers["content-type"]) == (404, "application/json")
    spoken = post(webui, "/v1/audio/speech", {"input": "abc", "model": "talker", "voice": "alloy"})
    assert spoken == tone("abc")
    heard = webui.post(
        "/v1/audio/transcriptions",
        data={"model": "hearer", "language": "en"},
        files={"file": ("a.wav", tone("abcd"), "audio/wav")},
    )
    assert heard.json() == {"text": "4 letters"}


def test_pictures_are_made_and_changed(webui: httpx.Client) -> None:
    ask = {"model": "painter", "prompt": "red", "n": 1, "size": "512x512", "response_format": "b64_json"}
    made = post(webui, "/v1/images/generations", ask)["data"][0]["b64_json"]
    assert base64.b64decode(made) == png(255, 0, 0)
    changed = webui.post(
        "/v1/images/edits",
        data={"model": "painter", "prompt": "as it is", "n": "1"},
        files={"image": ("b.png", png(0, 0, 255), "image/png")},
    )
    assert base64.b64decode(changed.json()["data"][0]["b64_json"]) == png(0, 0, 255)


def test_a_model_is_unloaded_as_its_llama_cpp_connections_do(webui: httpx.Client) -> None:
    post(webui, "/v1/completions", {"model": "chatty", "prompt": "a", "max_tokens": 1})
    for path in ("/models/unload", "/models/unload/", "/v1/models/unload"):
        assert post(webui, path, {"model": "chatty"}) == {"success": True}
    wait_until(lambda: all(each["name"] != "chatty:latest" for each in get(webui, "/api/ps")["models"]))


# A connection of Ollama's kind.


def test_a_connection_is_verified_and_its_models_are_listed_with_those_that_are_loaded(
    webui: httpx.Client,
) -> None:
    assert get(webui, "/api/version")["version"]
    load = {"model": "chatty:latest", "prompt": "", "stream": False, "keep_alive": "5m"}
    assert post(webui, "/api/generate", load)["done_reason"] == "load"
    tags = {model["model"]: model for model in get(webui, "/api/tags")["models"]}
    (loaded,) = [each for each in get(webui, "/api/ps")["models"] if each["name"] == "chatty:latest"]
    assert loaded["expires_at"]
    assert {"name", "model", "size", "details", "digest", "modified_at"} <= tags["chatty:latest"].keys()
    shown = post(webui, "/api/show", {"model": "chatty:latest", "name": "chatty:latest"})
    assert shown["model_info"]
    assert "completion" in shown["capabilities"]


@pytest.mark.parametrize("name", ["chatty:latest", "CHATTY"])
def test_a_chat_streams_in_lines(webui: httpx.Client, name: str) -> None:
    chat = {
        "model": name,
        "messages": HELLO,
        "stream": True,
        "options": {"num_predict": 6, "temperature": 0.5, "seed": 1, "stop": ["</s>"]},
        "keep_alive": "5m",
    }
    *_, last = post(webui, "/api/chat", chat)
    assert (last["done"], last["model"]) == (True, name)
    assert last["eval_count"] > 0
    whole = post(webui, "/api/chat", {**chat, "stream": False})
    assert whole["message"]["content"]


def test_its_openai_calls_reach_an_ollama_connection_too(webui: httpx.Client) -> None:
    assert get(webui, "/v1/models")["data"]
    chat = {"model": "chatty:latest", "messages": HELLO, "stream": False, **FEW}
    assert post(webui, "/v1/chat/completions", chat)["choices"]
    completion = {"model": "chatty:latest", "prompt": "Once", **FEW}
    assert post(webui, "/v1/completions", completion)["choices"]


def test_texts_are_generated_and_embedded_and_a_model_is_ejected(webui: httpx.Client) -> None:
    ask = {"model": "chatty:latest", "prompt": "Once", "stream": True, "options": {"num_predict": 4}}
    *_, last = post(webui, "/api/generate", ask)
    assert last["done"]
    many = {"model": "embedder:latest", "input": ["one", "two"], "truncate": True}
    assert [len(row) for row in post(webui, "/api/embed", many)["embeddings"]] == [64, 64]
    one = {"model": "embedder:latest", "prompt": "one"}
    assert len(post(webui, "/api/embeddings", one)["embedding"]) == 64
    ejected = post(webui, "/api/generate", {"model": "chatty:latest", "keep_alive": 0, "prompt": ""})
    (line,) = ejected if isinstance(ejected, list) else [ejected]
    assert line["done_reason"] == "unload"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/create", {"model": "mine", "from": "chatty"}),
        ("POST", "/api/copy", {"source": "chatty", "destination": "mine"}),
        ("POST", "/api/push", {"model": "chatty"}),
        ("DELETE", "/api/delete", {"model": "chatty"}),
        ("POST", "/api/blobs/sha256:00", {}),
    ],
)
def test_what_is_refused_is_answered_in_the_form_that_it_shows(
    webui: httpx.Client, method: str, path: str, body: dict[str, Any]
) -> None:
    reply = webui.request(method, path, json=body)
    assert reply.status_code in (403, 501)
    assert isinstance(reply.json()["error"], str)
