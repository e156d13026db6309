"""Images, audio and video: where they may come from, and which models take them."""

import json

import pytest

from cotenant.domain.errors import BadRequest
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ModelFile, ServedModel
from cotenant.gateway.inference.media import check_media
from tests.gateway.harness import SlotRouter, fetch, post, serving
from tests.gateway.stub import StubEngine

FILE = ModelFile("/models/m.gguf", 4_000_000, "llama", 3_000_000, "Q4_K_M", 28, 131072)
BLIND = ServedModel("blind", ModelKind.TEXT, created_at=1, file=FILE, state="cold")
HEARING = ServedModel("hearing", ModelKind.TEXT, created_at=1, file=FILE, hearing=True)
ELSEWHERE = ServedModel("elsewhere", ModelKind.TEXT, created_at=1)
SEEING = ServedModel("seeing", ModelKind.TEXT, created_at=1, file=FILE, vision=True)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
DATA = f"data:image/png;base64,{PNG}"


def chat(*parts: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: object) -> dict[str, object]:
    return chat({"type": "image_url", "image_url": {"url": url}})


def check(request: dict[str, object], *hosts: str, ascii_only: bool = True) -> set[str]:
    return set(check_media(request, json.dumps(request, ensure_ascii=ascii_only).encode(), hosts))


def forms(url: str) -> list[dict[str, object]]:
    """The ways in which a request of each dialect names a URL."""
    return [
        image(url),
        chat({"type": "image_url", "image_url": url}),
        chat({"image_url": {"url": url}}),
        chat({"type": "video_url", "video_url": {"url": url}}),
        chat({"type": "audio_url", "audio_url": {"url": url}}),
        chat({"type": "input_video", "input_video": {"url": url}}),
        chat({"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}),
        chat({"type": "image", "image": url}),
        chat({"type": "image", "source": {"type": "url", "url": url}}),
        chat({"type": "document", "source": {"type": "url", "url": url}}),
        chat({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}),
        {"messages": [{"role": "user", "content": {"type": "image_url", "image_url": {"url": url}}}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        {"input": [{"type": "input_file", "file_url": url}]},
        {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": url}]}]},
        {"input": [{"type": "computer_call_output", "output": {"image_url": url}}]},
        {"query": {"content": [{"type": "image_url", "image_url": {"url": url}}]}, "documents": []},
        {"query": "x", "documents": [{"image": url}]},
    ]


@pytest.mark.parametrize("request_", forms("http://169.254.169.254/latest"), ids=str)
def test_what_an_engine_would_fetch_is_refused_in_every_dialect(request_):
    with pytest.raises(BadRequest, match=r"169\.254\.169\.254") as caught:
        check(request_)
    assert "server.media_hosts" in caught.value.hint


@pytest.mark.parametrize("request_", forms("https://images.example/a.png"), ids=str)
def test_a_host_that_the_operator_allows_passes_with_any_port(request_):
    check(request_, "images.example")
    check(image("https://IMAGES.example:8443?x"), "images.example")


@pytest.mark.parametrize("request_", forms(DATA), ids=str)
def test_inline_media_pass(request_):
    check(request_)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc/passwd",
            "/etc/shadow.png",
            "etc/passwd",
            "ftp://images.example/a",
            "//images.example/a",
        ),
        *("https://images.example@evil.example/", "https://images.example\\@evil.example/"),
        *("https://images.example:80@evil.example/", "https://evil.example/images.example"),
        *("https://images.example.evil.example/", " https://images.example/", "https://images.example%2f@e/"),
        *("https:images.example", "https://", "", " data:x", "http://[::1]/", "https://images。example/"),
    ],
)
def test_no_other_way_to_write_a_url_gets_past(url):
    with pytest.raises(BadRequest):
        check(image(url), "images.example")


def test_a_star_allows_any_host_but_no_file():
    check(image("http://[::1]:80/a"), "*")
    with pytest.raises(BadRequest):
        check(image("file:///etc/passwd"), "*")


def test_an_escape_in_a_name_hides_nothing():
    body = rb'{"messages":[{"content":[{"im\u0061ge\u005furl":"http://evil.example"}]}]}'
    with pytest.raises(BadRequest):
        check_media(json.loads(body), body, ())


@pytest.mark.parametrize(
    "request_",
    [
        chat({"type": "text", "text": "see https://images.example/image_url", "image_url": None}),
        {"messages": [{"role": "user", "content": "image_url: http://evil.example"}]},
        chat({"type": "tool_use", "input": {"image_url": "https://images.example/"}}),
        chat({"type": "search_result", "source": "https://images.example/", "content": []}),
        {"messages": [], "tools": [{"function": {"parameters": {"image_url": "http://x"}}}]},
        {"input": [[1, 2], [3]], "messages": "image", "query": 3, "documents": [None, "image"]},
        {"input": [{"type": ["image"]}]},
    ],
    ids=str,
)
def test_what_only_looks_like_media_passes_and_counts_as_none(request_):
    assert not check(request_)


ASKS = {
    "/v1/chat/completions": image(DATA),
    "/v1/messages": chat({"type": "image", "source": {"type": "base64", "data": PNG}}),
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": DATA}]}]},
    "/api/chat": {"messages": [{"role": "user", "content": "x", "images": [PNG]}]},
    "/api/generate": {"prompt": "x", "images": [PNG]},
}


@pytest.mark.parametrize(("path", "payload"), ASKS.items())
async def test_a_model_without_projector_is_not_loaded_for_an_image(path, payload):
    async with (
        StubEngine() as engine,
        serving(router := SlotRouter(engine.endpoint, models=(BLIND, SEEING))) as port,
    ):
        reply = await post(port, {"model": "blind", **payload}, path)
        assert (reply.status, router.terms, engine.calls) == (400, [], [])
        assert "does not support images" in json.dumps(reply.json())
        await post(port, {"model": "seeing", **payload}, path)
        assert len(engine.calls) == 1


@pytest.mark.parametrize("padding", [b"", b" " * 100_000])
def test_a_long_body_is_looked_at_as_a_short_one(padding):
    for request in forms("http://evil.example"):
        with pytest.raises(BadRequest):
            check_media(request, json.dumps(request).encode() + padding, ())


async def test_the_gateway_asks_no_engine_to_fetch_unless_the_host_is_allowed():
    models = (SEEING,)
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint, models=models), media_hosts=["images.example"]) as port,
    ):
        refused = await post(port, {"model": "seeing", **image("http://localhost:1/x")})
        assert (refused.status, engine.calls) == (400, [])
        assert (await post(port, {"model": "seeing", **image("http://images.example/x")})).status == 200


@pytest.mark.parametrize(
    ("modality", "parts"),
    [
        (
            "image",
            [
                {"type": "image_url", "image_url": {"url": DATA}},
                {"type": "input_image", "image_url": DATA},
                {"type": "image", "source": {"type": "base64", "data": PNG}},
            ],
        ),
        (
            "audio",
            [
                {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
                {"type": "audio_url", "audio_url": {"url": DATA}},
            ],
        ),
        (
            "video",
            [
                {"type": "video_url", "video_url": {"url": DATA}},
                {"type": "input_video", "input_video": {"data": PNG}},
            ],
        ),
        (
            "file",
            [
                {"type": "file", "file": {"file_data": DATA, "filename": "a.pdf"}},
                {"type": "input_file", "file_data": DATA},
                {"type": "document", "source": {"type": "base64", "data": PNG}},
            ],
        ),
    ],
)
async def test_each_kind_of_part_is_refused_before_the_load_where_the_model_takes_none(modality, parts):
    takes = {"image": "seeing", "video": "seeing", "audio": "hearing"}
    words = {"image": "images", "audio": "audio", "video": "video", "file": "files"}
    async with (
        StubEngine() as engine,
        serving(router := SlotRouter(engine.endpoint, models=(BLIND, SEEING, HEARING, ELSEWHERE))) as port,
    ):
        for part in parts:
            assert check(chat({"type": "text", "text": "x"}, part)) == {modality}
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
                ask = {"input": chat(part)["messages"]} if path.endswith("responses") else chat(part)
                for name in ("blind", "seeing", "hearing", "elsewhere"):
                    asked = len(engine.calls)
                    reply = await post(port, {"model": name, **ask}, path)
                    passes = name in ("elsewhere", takes.get(modality))
                    assert reply.status == (200 if passes else 400), (name, part)
                    assert (len(engine.calls) > asked) == passes
                    if not passes:
                        assert f"{name} does not support {words[modality]}" in reply.error["message"]
    assert not router.held


async def test_lists_say_what_a_model_takes_besides_text():
    async with serving(SlotRouter(None, models=(BLIND, SEEING, HEARING))) as port:
        listed = (await fetch(port, "GET", "/v1/models")).json()["data"]
        described = (await fetch(port, "GET", "/api/models/hearing")).json()
    assert [each["meta"]["modalities"]["input"] for each in listed] == [
        ["text"],
        ["text", "image"],
        ["text", "audio"],
    ]
    assert (described["vision"], described["hearing"]) == (False, True)
