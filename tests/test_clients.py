"""The official clients of OpenAI, Ollama and Anthropic against one daemon, with real engines behind it."""

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from cotenant.gateway.inference.assembly import SHORT_TOKENS
from tests.support.daemon.serving import Serving
from tests.support.http.model_hub import StandInHub, standing_in
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama
from tests.support.models.vision import build_tiny_projector, png
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow]

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
RED, BLUE = png(255, 0, 0), png(0, 0, 255)
GREEDY = {"num_predict": 12, "temperature": 0, "seed": 1}


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        pytest.param(
            "server",
            marks=pytest.mark.skipif(
                not os.environ.get("COTENANT_TEST_LLAMA_SERVER"), reason="no llama-server is named"
            ),
        ),
    ],
)
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One daemon that serves a chat model, one that sees, an embedder and a reranker."""
    folder = tmp_path_factory.mktemp("clients")
    models = folder / "models"
    (models / "seeing").mkdir(parents=True)
    build_tiny_llama(models / "chatty.gguf")
    build_tiny_llama(models / "seeing" / "seer.gguf")
    build_tiny_projector(models / "seeing" / "mmproj-F32.gguf")
    build_tiny_embedder(models / "embedder.gguf")
    build_tiny_embedder(models / "ranker.gguf", ranks=True)
    flags = ["--models-dir", str(models), "--port", "0", "--n-ctx", "2048", "--parallel", "2"]
    if request.param == "server":
        flags += ["--llama-server", os.environ["COTENANT_TEST_LLAMA_SERVER"]]
    pulled = build_tiny_llama(folder / "pulled.gguf").read_bytes()
    repository = {"org/repo": {"tiny-Q4_K_M.gguf": pulled, "tiny-Q8_0.gguf": b"not asked for"}}
    env = {"HF_HOME": str(folder)}
    with (
        standing_in(StandInHub(repository)) as hub,
        Serving(["serve", *flags], folder / "state", {**env, "HF_ENDPOINT": hub.address}) as serving,
    ):
        serving.address()
        yield serving
        assert serving.terminate() == 0


@pytest.fixture
def openai_client(daemon: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=daemon.address() + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def ollama_client(daemon: Serving) -> Iterator[ollama.Client]:
    client = ollama.Client(host=daemon.address())
    yield client
    client._client.close()


@pytest.fixture
def anthropic_client(daemon: Serving) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=daemon.address(), api_key="none", max_retries=0) as client:
        yield client


def image_url(picture: bytes) -> str:
    import base64

    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def post(daemon: Serving, path: str, payload: object) -> Any:
    request = urllib.request.Request(
        daemon.address() + path, json.dumps(payload).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


# OpenAI.


def test_openai_chats_streams_and_embeds(openai_client: openai.OpenAI) -> None:
    whole = openai_client.chat.completions.create(
        model="chatty", messages=HELLO, max_tokens=8, temperature=0, seed=1
    )
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    stream = openai_client.chat.completions.create(
        model="chatty", messages=HELLO, max_tokens=8, temperature=0, seed=1, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    vectors = openai_client.embeddings.create(model="embedder", input=["one", "two"], encoding_format="float")
    assert [len(row.embedding) for row in vectors.data] == [64, 64]


def test_openai_asks_for_responses(openai_client: openai.OpenAI) -> None:
    whole = openai_client.responses.create(model="chatty", input="Hello", max_output_tokens=6)
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens == 6
    # The helper `responses.stream` wants fields that llama.cpp's events lack; the events themselves are read.
    stream = openai_client.responses.create(model="chatty", input="Hello", max_output_tokens=6, stream=True)
    events = list(stream)
    assert [event.type for event in events].count("response.output_text.delta") == 6
    assert events[-1].type == "response.completed"


def test_llama_cpps_own_routes_are_reached_by_model(daemon: Serving) -> None:
    tokens = post(daemon, "/tokenize", {"model": "chatty:latest", "content": "Hello"})["tokens"]
    assert post(daemon, "/v1/detokenize", {"model": "chatty", "tokens": tokens})["content"].endswith("Hello")
    assert "Hello" in post(daemon, "/apply-template", {"model": "chatty", "messages": HELLO})["prompt"]
    assert post(daemon, "/completion", {"model": "chatty", "prompt": "Hello", "n_predict": 2})["content"]
    assert post(daemon, "/upstream/chatty/tokenize", {"content": "Hello"})["tokens"] == tokens
    with pytest.raises(urllib.error.HTTPError) as caught:
        # The model has no tokens that mark a gap.
        post(daemon, "/infill", {"model": "chatty", "input_prefix": "a", "input_suffix": "b"})
    assert caught.value.code == 501
    assert "does not support /infill: " in json.load(caught.value)["error"]["message"]


def test_openai_shows_pictures(openai_client: openai.OpenAI) -> None:
    def look(picture: bytes) -> str | None:
        content = [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": image_url(picture)}},
        ]
        messages: list[Any] = [{"role": "user", "content": content}]
        answer = openai_client.chat.completions.create(
            model="seer", messages=messages, max_tokens=12, temperature=0
        )
        return answer.choices[0].message.content

    assert look(RED) == look(RED)
    assert look(RED) != look(BLUE)


def test_documents_are_ranked(daemon: Serving) -> None:
    told = post(daemon, "/v1/rerank", {"model": "ranker", "query": "a", "documents": ["b", "c", "d"]})
    assert sorted(row["index"] for row in told["results"]) == [0, 1, 2]
    scores = [row["relevance_score"] for row in told["results"]]
    assert all(math.isfinite(score) for score in scores)
    assert len(set(scores)) == 3
    assert post(daemon, "/rerank", {"model": "ranker", "query": "a", "documents": ["b"]})["results"]


@pytest.mark.parametrize(
    ("path", "payload", "why"),
    [
        ("/v1/rerank", {"model": "chatty", "query": "a", "documents": ["b"]}, "model for text"),
        ("/v1/embeddings", {"model": "ranker", "input": "a"}, "model for ranking documents"),
        ("/v1/chat/completions", {"model": "embedder", "messages": HELLO}, "model for embeddings"),
        ("/v1/responses", {"model": "ranker", "input": "a"}, "model for ranking documents"),
    ],
)
def test_models_of_another_kind_are_refused(daemon: Serving, path: str, payload: object, why: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(daemon, path, payload)
    with refused.value as answer:
        assert answer.code == 400
        assert why in json.load(answer)["error"]["message"]


# Ollama.


def test_ollama_lists_and_shows(ollama_client: ollama.Client) -> None:
    listed = {model.model: model for model in ollama_client.list().models}
    assert {"chatty:latest", "seer:latest", "embedder:latest", "ranker:latest"} <= set(listed)
    chatty = listed["chatty:latest"]
    assert chatty.details is not None
    assert chatty.details.family == "llama"
    assert (chatty.size or 0) > 1_000_000
    seen = ollama_client.show("seer:latest")
    assert seen.capabilities is not None
    assert "vision" in seen.capabilities
    assert seen.modelinfo is not None
    assert seen.modelinfo["llama.block_count"] == 4
    assert seen.modelinfo["llama.embedding_length"] == 256


def test_ollama_chats_and_generates(ollama_client: ollama.Client) -> None:
    whole = ollama_client.chat("chatty", messages=HELLO, options=GREEDY)
    assert whole.message.content
    assert (whole.done_reason, whole.eval_count) == ("length", 12)
    assert (whole.prompt_eval_count or 0) > 0
    assert (whole.eval_duration or 0) > 0
    pieces = list(ollama_client.chat("chatty:latest", messages=HELLO, options=GREEDY, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    prompted = ollama_client.generate("chatty", "Hello", system="Be brief", options=GREEDY)
    raw = ollama_client.generate("chatty", "Hello", raw=True, options=GREEDY)
    assert prompted.response
    assert raw.response
    assert prompted.response != raw.response


def test_ollama_shows_pictures(ollama_client: ollama.Client) -> None:
    def look(picture: bytes) -> str:
        return ollama_client.generate("seer", "What is it?", images=[picture], options=GREEDY).response

    assert look(RED) == look(RED)
    assert look(RED) != look(BLUE)


def test_ollama_embeds(ollama_client: ollama.Client) -> None:
    told = ollama_client.embed("embedder", ["one", "two"])
    assert [len(vector) for vector in told.embeddings] == [64, 64]
    assert (told.prompt_eval_count or 0) > 0
    short = ollama_client.embed("embedder", "one", dimensions=16).embeddings[0]
    assert len(short) == 16
    assert math.hypot(*short) == pytest.approx(1, abs=1e-3)
    assert len(ollama_client.embeddings("embedder", "one").embedding) == 64


def test_ollama_embeds_the_beginning_of_what_is_too_long(ollama_client: ollama.Client) -> None:
    words = "one two three " * 700
    told = ollama_client.embed("embedder", [words, "one"])
    whole = ollama_client.embed("embedder", "one two three " * 35).embeddings[0]
    assert math.dist(told.embeddings[0], whole) < 0.2 < math.dist(told.embeddings[1], whole)
    assert 512 <= (told.prompt_eval_count or 0) <= 520, "the model was trained for 512 tokens"
    with pytest.raises(ollama.ResponseError, match="exceeds the context length"):
        ollama_client.embed("embedder", words, truncate=False)


def test_ollama_loads_and_unloads(ollama_client: ollama.Client) -> None:
    loaded = ollama_client.generate("chatty", keep_alive="7m")
    assert loaded.done_reason == "load"
    running = {model.model: model for model in ollama_client.ps().models}
    assert running["chatty:latest"].context_length == 2048
    assert running["chatty:latest"].expires_at is not None
    assert ollama_client.generate("chatty", keep_alive=0).done_reason == "unload"
    # As with Ollama, the answer does not wait for the end: a model stays for its minimum residency at least.
    wait_until(lambda: "chatty:latest" not in {model.model for model in ollama_client.ps().models})


def test_ollama_pulls_a_model_and_chats_with_it_by_that_name(ollama_client: ollama.Client) -> None:
    name = "hf.co/org/repo:Q4_K_M"
    steps = list(ollama_client.pull(name, stream=True))
    assert [step.completed for step in steps if step.total][-1] == steps[-3].total
    assert steps[-1].status == "success"
    assert ollama_client.chat(name, messages=HELLO, options=GREEDY).message.content
    assert "tiny-Q4_K_M:latest" in {model.model for model in ollama_client.list().models}
    assert ollama_client.pull(name).status == "success"
    with pytest.raises(ollama.ResponseError, match="no org/none on the hub"):
        ollama_client.pull("hf.co/org/none")
    with pytest.raises(ollama.ResponseError, match="names no model that can be pulled"):
        ollama_client.pull("llama3.2")


def test_ollama_is_told_of_faults(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'none' not found") as missing:
        ollama_client.chat("none", messages=HELLO)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support chat"):
        list(ollama_client.chat("embedder", messages=HELLO, stream=True))
    with pytest.raises(ollama.ResponseError, match="does not support images"):
        ollama_client.generate("chatty", "What is it?", images=[RED])
    with pytest.raises(ollama.ResponseError, match="not offered"):
        ollama_client.delete("chatty")


# Anthropic.


def test_anthropic_chats_streams_and_counts(anthropic_client: anthropic.Anthropic) -> None:
    whole = anthropic_client.messages.create(model="chatty", max_tokens=8, messages=HELLO)
    assert whole.content[0].type == "text"
    assert whole.content[0].text
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 8)
    with anthropic_client.messages.stream(model="chatty", max_tokens=8, messages=HELLO) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens == 8
    assert anthropic_client.messages.count_tokens(model="chatty", messages=HELLO).input_tokens > 0


@pytest.mark.parametrize(
    ("path", "limit", "asked"),
    [
        ("/v1/messages", "max_tokens", {"messages": HELLO}),
        ("/v1/responses", "max_output_tokens", {"input": "Hello"}),
    ],
)
def test_a_long_plain_answer_is_as_the_engine_gives_it_itself(
    daemon: Serving, path: str, limit: str, asked: dict[str, object]
) -> None:
    def told(most: int) -> Any:
        return post(daemon, path, {"model": "chatty", "temperature": 0, "seed": 1, limit: most, **asked})

    def text(answer: Any) -> str:
        (block,) = answer["content"] if "content" in answer else answer["output"][0]["content"]
        written: str = block["text"]
        return written

    passed, put_together = told(SHORT_TOKENS), told(SHORT_TOKENS + 1)
    assert text(put_together).startswith(text(passed))
    assert set(passed) - {"completed_at"} == set(put_together) - {"completed_at"}
    assert set(passed["usage"]) == set(put_together["usage"])
    assert put_together["usage"]["output_tokens"] >= passed["usage"]["output_tokens"] > 0


def test_anthropic_is_told_of_faults(anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        anthropic_client.messages.create(model="none", max_tokens=8, messages=HELLO)
    told: Any = missing.value.body
    assert told["type"] == "error"
    assert told["error"]["type"] == "not_found_error"
    assert "the model 'none' is not served here. Served: chatty," in told["error"]["message"]
    with pytest.raises(anthropic.BadRequestError, match="model for embeddings"):
        anthropic_client.messages.create(model="embedder", max_tokens=8, messages=HELLO)


# All of them.


def test_tokens_of_every_dialect_are_counted(
    daemon: Serving, anthropic_client: anthropic.Anthropic, ollama_client: ollama.Client
) -> None:
    def counted() -> dict[str, float]:
        with urllib.request.urlopen(daemon.address() + "/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        found = (line for line in lines if line.startswith("cotenant_tokens_total") and '"chatty"' in line)
        return {
            line.partition('kind="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in found
        }

    before = counted()
    anthropic_client.messages.create(model="chatty", max_tokens=8, messages=HELLO)
    with anthropic_client.messages.stream(model="chatty", max_tokens=8, messages=HELLO) as stream:
        prompt = stream.get_final_message().usage
    ollama_client.chat("chatty", messages=HELLO, options={"num_predict": 8}, stream=False)
    post(daemon, "/v1/responses", {"model": "chatty", "input": "Hello", "max_output_tokens": 8})
    after = counted()
    assert after["completion"] - before["completion"] == 32
    of_one = prompt.input_tokens + (prompt.cache_read_input_tokens or 0)
    assert after["prompt"] - before["prompt"] == 4 * of_one
