"""Rules of a model change what its engine gets, in every dialect."""

import json
from typing import Any

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.domain.keys import ApiKey, KeyScope, key_digest
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import RequestRules, ServedModel
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, fetch, post, serving
from tests.gateway.stub import StubEngine

RULES = RequestRules(
    {"temperature": 0.5, "chat_template_kwargs": {"enable_thinking": True}},
    ("seed",),
    {"max_tokens": 100, "top_p": 0.9},
)
FAST = RequestRules({"chat_template_kwargs": {"enable_thinking": False}}, (), {"max_tokens": 10})
MODEL = ServedModel(
    "qwen",
    ModelKind.TEXT,
    created_at=1,
    aliases=("gpt-4o",),
    rules=RULES,
    variants={"qwen:fast": FAST.over(RULES)},
)
PLAIN = ServedModel("plain", ModelKind.TEXT, created_at=1)
HELLO = [{"role": "user", "content": "Hello"}]


async def ask(payload: dict[str, Any], path: str = "/v1/chat/completions", model: ServedModel = MODEL):
    """Ask once; return the reply and the body that the engine got."""
    async with StubEngine(stub.answer) as engine:
        async with serving(SlotRouter(engine.endpoint, models=(model, PLAIN))) as port:
            reply = await post(port, payload, path)
        return reply, engine.calls[0].body if engine.calls else None


async def got(payload: dict[str, Any], path: str = "/v1/chat/completions", **rules: Any) -> dict[str, Any]:
    """Return the request that the engine got, under `rules` if they are given."""
    model = ServedModel("qwen", ModelKind.TEXT, 1, rules=RequestRules(**rules)) if rules else MODEL
    reply, body = await ask({"model": "qwen", **payload}, path, model)
    assert reply.status == 200 or path.startswith("/api"), reply.body
    # A plain request is sent to llama.cpp as a stream.
    return {key: value for key, value in json.loads(body).items() if not key.startswith("stream")}


async def test_fields_are_stripped_set_and_limited():
    sent = {"messages": HELLO, "seed": 7, "temperature": 2, "top_p": 0.95, "max_tokens": 5000, "min_p": 0.1}
    assert await got(sent) == {
        "model": "qwen",
        "messages": HELLO,
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": True},
        "top_p": 0.9,
        "max_tokens": 100,
        "min_p": 0.1,
    }


async def test_objects_are_merged_and_what_is_below_a_limit_stays():
    sent = {"messages": HELLO, "chat_template_kwargs": {"a": 1, "enable_thinking": False}, "max_tokens": 3}
    seen = await got(sent)
    assert seen["chat_template_kwargs"] == {"a": 1, "enable_thinking": True}
    assert (seen["max_tokens"], "top_p" in seen) == (3, False)


@pytest.mark.parametrize("name", ["qwen:fast", "QWEN:Fast", "qwen:fast:latest", "library/qwen:fast"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_variant_has_its_models_rules_and_its_own_over_them(name: str, path: str):
    seen = await got({"model": name, "messages": HELLO, "seed": 7}, path)
    assert seen["model"] == "qwen"
    assert seen["chat_template_kwargs"] == {"enable_thinking": False}
    assert (seen["temperature"], seen["max_tokens"], "seed" in seen) == (0.5, 10, False)


@pytest.mark.parametrize("name", ["qwen", "gpt-4o", "qwen:latest", "Qwen"])
async def test_rules_hold_under_every_name_of_the_model(name: str):
    assert (await got({"model": name, "messages": HELLO}))["max_tokens"] == 100


@pytest.mark.parametrize(
    ("path", "sent", "seen"),
    [
        ("/v1/chat/completions", {"max_completion_tokens": 500}, {"max_completion_tokens": 100}),
        ("/v1/chat/completions", {"n_predict": 20}, {"n_predict": 20, "max_tokens": 20}),
        ("/v1/chat/completions", {"max_tokens": -1}, {"max_tokens": 100}),
        ("/v1/chat/completions", {"max_tokens": None}, {"max_tokens": 100}),
        ("/v1/completions", {}, {"max_tokens": 100}),
        ("/v1/responses", {}, {"max_output_tokens": 100}),
        ("/v1/responses", {"max_output_tokens": 500}, {"max_output_tokens": 100}),
        ("/v1/messages", {"max_tokens": 500}, {"max_tokens": 100}),
        ("/completion", {"max_tokens": 500}, {"max_tokens": 100, "n_predict": 100}),
        ("/infill", {}, {"n_predict": 100}),
        ("/apply-template", {}, {}),
        ("/api/chat", {"options": {"num_predict": 500}}, {"max_tokens": 100}),
        ("/api/generate", {"options": {"num_predict": -1}}, {"max_tokens": 100}),
    ],
)
async def test_the_limit_of_tokens_has_the_name_of_each_dialect(path: str, sent: Any, seen: Any):
    tokens = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
    body = await got({"messages": HELLO, "prompt": "Hello", **sent}, path, limit={"max_tokens": 100})
    assert {key: value for key, value in body.items() if key in tokens} == seen


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", {"max_tokens": 5, "reasoning_effort": "low", "stop": ["x"]}),
        ("/v1/responses", {"max_output_tokens": 5, "reasoning": {"a": 1, "effort": "low"}, "stop": ["x"]}),
        ("/v1/messages", {"max_tokens": 5, "output_config": {"effort": "low"}, "stop_sequences": ["x"]}),
        ("/completion", {"n_predict": 5, "reasoning_effort": "low", "stop": ["x"]}),
    ],
)
async def test_set_fields_have_the_names_of_each_dialect(path: str, expected: dict[str, Any]):
    rules = {"max_tokens": 5, "reasoning_effort": "low", "stop": ["x"]}
    sent = {"max_completion_tokens": 9} if "chat" in path else {}
    sent |= {"reasoning": {"a": 1, "effort": "high"}} if "responses" in path else {}
    body = await got({"messages": HELLO, **sent}, path, set=rules)
    assert body == {"model": "qwen", "messages": HELLO, **expected}
    sent |= (
        {"output_config": {"effort": "x"}, "stop_sequences": ["y"]} if "messages" in path else {"stop": "y"}
    )
    body = await got({"messages": HELLO, "max_tokens": 4, **sent}, path, strip=tuple(rules))
    left = {"reasoning": {"a": 1}} if "responses" in path else {}
    left |= {"output_config": {}} if "messages" in path else {}
    assert body == {"model": "qwen", "messages": HELLO, **left}


@pytest.mark.parametrize("value", ["5000", True, [1]])
async def test_what_is_limited_must_be_a_number(value: Any):
    reply, body = await ask({"model": "qwen", "messages": HELLO, "max_tokens": value})
    assert (reply.status, body) == (400, None)
    assert "`max_tokens` is not a number" in reply.error["message"]


async def test_without_rules_the_body_is_what_the_client_sent():
    sent = b'{ "model":"plain", "messages":[], "max_tokens":1}'
    async with StubEngine(stub.answer) as engine:
        async with serving(SlotRouter(engine.endpoint, models=(MODEL, PLAIN))) as port:
            await fetch(port, "POST", "/v1/chat/completions", sent)
        assert engine.calls[0].body == sent


async def test_tokens_are_counted_as_they_are_and_files_are_left_alone():
    assert await got({"content": "a", "seed": 1}, "/tokenize") == {"model": "qwen", "content": "a", "seed": 1}
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nears\r\n--x--\r\n'
    ears = ServedModel("ears", ModelKind.TRANSCRIPTION, 1, rules=RULES)
    async with StubEngine(stub.answer) as engine:
        async with serving(SlotRouter(engine.endpoint, models=(ears,))) as port:
            path = "/v1/audio/transcriptions"
            await fetch(port, "POST", path, form, Content_Type="multipart/form-data; boundary=x")
        assert engine.calls[0].body == form


async def test_variants_are_listed_as_models_in_both_lists_and_named_by_their_model():
    router = SlotRouter(Endpoint("127.0.0.1", 1), models=(MODEL, PLAIN))
    async with serving(router) as port:
        listed = (await fetch(port, "GET", "/v1/models")).json()["data"]
        one = (await fetch(port, "GET", "/v1/models/QWEN:fast")).json()
        tags = (await fetch(port, "GET", "/api/tags")).json()["models"]
    assert [(each["id"], each["meta"]["variant_of"]) for each in listed] == [
        ("qwen", None),
        ("qwen:fast", "qwen"),
        ("plain", None),
    ]
    assert one == listed[1]
    assert [each["name"] for each in tags] == ["qwen:latest", "qwen:fast", "plain:latest"]


async def test_a_key_has_the_variants_of_its_models_and_none_by_their_names_alone():
    keys = [
        ApiKey("of-model", key_digest("a"), KeyScope.INFER, models=("qwen",)),
        ApiKey("of-variant", key_digest("b"), KeyScope.INFER, models=("qwen:fast",)),
    ]
    async with StubEngine(stub.answer) as engine:
        router = SlotRouter(engine.endpoint, models=(MODEL, PLAIN))
        async with serving(router, api_keys=keys) as port:
            seen = []
            for key in ("a", "b"):
                headers = {"Authorization": f"Bearer {key}"}
                asked = await post(port, {"model": "qwen:fast", "messages": HELLO}, **headers)
                listed = (await fetch(port, "GET", "/v1/models", **headers)).json()["data"]
                seen.append((asked.status, [each["id"] for each in listed]))
        assert json.loads(engine.calls[0].body)["max_tokens"] == 10
    assert seen == [(200, ["qwen", "qwen:fast"]), (404, [])]


async def test_adapters_are_named_in_every_api_that_reads_them_and_refused_in_the_one_that_does_not():
    chosen = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    base = [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}]
    model = ServedModel(
        "qwen",
        ModelKind.TEXT,
        1,
        rules=RequestRules({"lora": base}),
        variants={"sql": RequestRules({"lora": chosen})},
    )
    for name, scales in (("qwen", base), ("sql", chosen)):
        for path, asked in (
            ("/v1/chat/completions", {"messages": HELLO}),
            ("/v1/completions", {"prompt": "Hello", "lora": [{"id": 0, "scale": 9}]}),
            ("/v1/responses", {"input": "Hello"}),
            ("/api/chat", {"messages": HELLO}),
        ):
            _, body = await ask({"model": name, **asked}, path, model)
            assert json.loads(body)["lora"] == scales, path
        reply, body = await ask({"model": name, "messages": HELLO, "max_tokens": 9}, "/v1/messages", model)
        assert (reply.status, body) == (400, None)
        assert b"reads no adapters in this API" in reply.body
