"""Ollama's API, on engines that answer as each test scripts them."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from cotenant.domain.decisions import ModelStatus
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import BadHubName, CotenantError, HubSilent, NotOffered, NotOnHub
from cotenant.domain.hub import PullStep
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.requests import ModelFile, ServedModel
from tests.gateway import stub
from tests.gateway.harness import MODEL, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.waiting import until

FILE = ModelFile("/models/seen.gguf", 4_000_000, "llama", 3_210_000_000, "Q4_K_M", 28, 131072)
SEEN = ServedModel("seen", ModelKind.TEXT, created_at=1_700_000_000, file=FILE, recipe=Recipe(n_ctx=8192))
PICTURED = ServedModel("pictured", ModelKind.TEXT, created_at=1, file=FILE, vision=True)
EMBEDDER = ServedModel("embedder", ModelKind.EMBEDDING, created_at=1, file=FILE, state="cold")
MODELS = (MODEL, SEEN, PICTURED, EMBEDDER)
BASE = ServedModel("base", ModelKind.TEXT, created_at=1, file=replace(FILE, chat_template=False))
TIMINGS = {"cache_n": 4, "prompt_n": 20, "prompt_ms": 12.5, "predicted_n": 3, "predicted_ms": 30.25}
USAGE = {"prompt_tokens": 24, "completion_tokens": 3, "total_tokens": 27}
HELLO = [{"role": "user", "content": "Hello"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(8)).decode()


def events(*deltas: dict[str, Any], reason: str = "stop") -> list[bytes]:
    """A stream of chat completions as llama.cpp sends it."""
    told = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    told.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    told.append({"choices": [], "usage": USAGE, "timings": TIMINGS})
    return [json.dumps(event).encode() for event in told]


def streams(*deltas: dict[str, Any], reason: str = "stop") -> stub.Script:
    async def script(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        for event in events(*deltas, reason=reason):
            await call.send_event(event)
        await call.send_event(b"[DONE]")
        await call.send(b"0\r\n\r\n")
        call.writer.close()

    return script


WORDS = streams({"role": "assistant", "content": None}, {"content": "one "}, {"content": "two"})


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


async def ask(payload: object, path: str = "/api/chat", script: stub.Script = WORDS, **headers: str):
    """Ask once; return the reply and what the engine was asked."""
    models = (*MODELS, BASE)
    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint, models=models)) as port:
        reply = await post(port, payload, path, **headers)
        calls = [(call.path.decode(), json.loads(call.body)) for call in engine.calls]
    return reply, calls


async def test_a_chat_is_streamed_as_lines_with_the_engines_own_counts():
    reply, [(path, asked)] = await ask({"model": "llama", "messages": HELLO})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-ndjson")
    *pieces, last = lines(reply.body)
    assert [piece["message"] for piece in pieces] == [
        {"role": "assistant", "content": "one "},
        {"role": "assistant", "content": "two"},
    ]
    assert all(piece["model"] == "llama" and piece["done"] is False for piece in pieces)
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert (last["prompt_eval_count"], last["eval_count"]) == (24, 3)
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (12_500_000, 30_250_000)
    assert last["total_duration"] >= last["load_duration"] >= 0
    assert path == "/v1/chat/completions"
    assert asked == {
        "model": "llama",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_without_streaming_the_answer_is_one_object():
    reply, _ = await ask({"model": "llama:latest", "messages": HELLO, "stream": False})
    told = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert told["message"] == {"role": "assistant", "content": "one two"}
    assert (told["model"], told["done"]) == ("llama:latest", True)


async def test_an_engine_that_does_not_stream_is_understood():
    whole = {"choices": [{"message": {"content": "all"}, "finish_reason": "length"}], "usage": USAGE}

    async def answer(call: stub.Call) -> None:
        await call.send(stub.response(json.dumps(whole, indent=1).encode()))

    reply, _ = await ask({"model": "llama", "messages": HELLO}, script=answer)
    piece, last = lines(reply.body)
    assert piece["message"]["content"] == "all"
    assert (last["done_reason"], last["eval_count"]) == ("length", 3)


@pytest.mark.parametrize(
    ("model", "value", "sent"),
    [("seen", -1, 8192), ("seen", 0, 0), ("seen", 64, 64), ("llama", -1, None), ("llama", 64, 64)],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_negative_repeat_last_n_is_the_context_of_the_model(model, value, sent, path):
    payload = {"model": model, "prompt": "x", "messages": HELLO, "options": {"repeat_last_n": value}}
    _, [(_, asked)] = await ask(payload, path)
    assert asked.get("repeat_last_n") == sent


async def test_options_formats_and_thinking_are_translated_and_loading_options_left_out(caplog):
    caplog.set_level("INFO")
    options = {"num_predict": 5, "temperature": 0, "top_k": 3, "stop": "x", "num_ctx": 2048, "num_gpu": 1}
    schema = {"type": "object"}
    _, [(_, asked)] = await ask(
        {
            "model": "llama",
            "messages": HELLO,
            "options": options,
            "format": schema,
            "think": False,
            "keep_alive": "7m",
        }
    )
    assert (asked["max_tokens"], asked["temperature"], asked["top_k"], asked["stop"]) == (5, 0, 3, ["x"])
    assert asked["response_format"]["json_schema"]["schema"] == schema
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert "keep_alive" not in asked
    assert not asked.keys() & options.keys() - {"temperature", "top_k", "stop"}
    assert "num_ctx, num_gpu" in caplog.text
    _, [(_, asked)] = await ask(
        {
            "model": "llama",
            "messages": HELLO,
            "format": "json",
            "think": "low",
            "options": {"num_predict": -1},
        }
    )
    assert asked["response_format"] == {"type": "json_object"}
    assert asked["reasoning_effort"] == "low"
    assert "max_tokens" not in asked


async def test_numbers_are_cut_as_ollama_cuts_them_and_none_is_no_limit():
    options = {"num_predict": 0, "seed": 7.0, "top_k": 3.7, "temperature": 1}
    _, [(_, asked)] = await ask({"model": "llama", "messages": HELLO, "options": options})
    assert "max_tokens" not in asked
    assert [repr(asked[name]) for name in ("seed", "top_k", "temperature")] == ["7", "3", "1"]


async def test_a_repeat_penalty_of_nothing_is_none():
    options = {"repeat_penalty": 0.0, "temperature": 0}
    _, [(_, asked)] = await ask({"model": "llama", "messages": HELLO, "options": options})
    assert ("repeat_penalty" in asked, asked["temperature"]) == (False, 0)


async def test_a_result_that_answers_no_call_is_passed_on():
    _, [(_, asked)] = await ask({"model": "llama", "messages": [{"role": "tool", "content": "x"}]})
    assert asked["messages"] == [{"role": "tool", "content": "x", "tool_call_id": "call_0"}]


async def test_probabilities_of_tokens_come_with_their_words():
    told = {"token": "a", "logprob": -0.5, "bytes": [97]}

    async def script(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        content = [{**told, "id": 3, "top_logprobs": [{**told, "id": 3}]}]
        choice = {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": content}}
        await call.send_event(json.dumps({"choices": [choice]}).encode())
        await call.send_event(b'{"choices":[{"delta":{},"logprobs":null,"finish_reason":"stop"}]}')
        await call.send(b"0\r\n\r\n")
        call.writer.close()

    payload = {"model": "llama", "messages": HELLO, "logprobs": True, "top_logprobs": 1}
    expected = [{**told, "top_logprobs": [told]}]
    reply, [(_, asked)] = await ask(payload, script=script)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 1)
    piece, last = lines(reply.body)
    assert piece["logprobs"] == expected
    assert "logprobs" not in last
    reply, _ = await ask({**payload, "stream": False}, script=script)
    assert reply.json()["logprobs"] == expected


async def test_thoughts_come_apart_from_the_answer():
    reply, _ = await ask(
        {"model": "llama", "messages": HELLO, "stream": False},
        script=streams({"reasoning_content": "hm "}, {"reasoning_content": "so"}, {"content": "yes"}),
    )
    assert reply.json()["message"] == {"role": "assistant", "content": "yes", "thinking": "hm so"}


async def test_tools_are_called_and_their_results_joined_to_the_calls():
    deltas = [
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "sky", "arguments": '{"at": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"noon"}'}}]},
    ]
    tools = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
    calls = [
        {"function": {"name": "sky", "arguments": {"at": "dawn"}}},
        {"function": {"name": "sea", "arguments": {}}},
    ]
    conversation = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "sea", "content": "calm"},
        {"role": "tool", "content": "red"},
    ]
    reply, [(_, asked)] = await ask(
        {"model": "llama", "messages": conversation, "tools": tools},
        script=streams(*deltas, reason="tool_calls"),
    )
    called, last = lines(reply.body)
    function = {"index": 0, "name": "sky", "arguments": {"at": "noon"}}
    assert called["message"]["tool_calls"] == [{"id": "a", "function": function}]
    assert (called["done"], last["message"]["content"], last["done_reason"]) == (False, "", "stop")
    assert asked["tools"] == tools
    _, assistant, sea, sky = asked["messages"]
    assert assistant["tool_calls"][0]["function"] == {"name": "sky", "arguments": '{"at": "dawn"}'}
    assert sea["tool_call_id"] == assistant["tool_calls"][1]["id"]
    assert sky["tool_call_id"] == assistant["tool_calls"][0]["id"]


async def test_images_go_to_models_that_see_and_no_others():
    message = {"role": "user", "content": "What is it?", "images": [PNG]}
    _, [(_, asked)] = await ask({"model": "pictured", "messages": [message]})
    words, image = asked["messages"][0]["content"]
    assert words == {"type": "text", "text": "What is it?"}
    assert image["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    reply, calls = await ask({"model": "seen", "messages": [message]})
    assert (reply.status, calls) == (400, [])
    assert "does not support images" in reply.error


async def test_a_prompt_becomes_a_chat_with_its_system_and_images():
    reply, [(path, asked)] = await ask(
        {"model": "pictured", "prompt": "Say", "system": "Be brief", "images": [PNG]}, "/api/generate"
    )
    assert path == "/v1/chat/completions"
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    *pieces, last = lines(reply.body)
    assert "".join(piece["response"] for piece in pieces) == "one two"
    assert last["response"] == ""


async def test_a_raw_prompt_is_completed_as_it_stands():
    async def complete(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        await call.send_event(b'{"choices":[{"text":"more","finish_reason":null}]}')
        await call.send_event(b'{"choices":[{"text":"","finish_reason":"length"}],"usage":{}}')
        await call.send(b"0\r\n\r\n")
        call.writer.close()

    reply, [(path, asked)] = await ask(
        {"model": "llama", "prompt": "[INST]", "raw": True, "stream": False}, "/api/generate", complete
    )
    assert (path, asked["prompt"]) == ("/v1/completions", "[INST]")
    assert (reply.json()["response"], reply.json()["done_reason"]) == ("more", "length")


async def test_a_model_without_a_chat_template_goes_on_with_the_prompt_as_it_stands():
    _, [(path, asked)] = await ask({"model": "base", "prompt": "Once"}, "/api/generate")
    assert (path, asked["prompt"]) == ("/v1/completions", "Once")
    told = {"model": "base", "prompt": "Once", "logprobs": True, "top_logprobs": 2}
    _, [(path, asked)] = await ask(told, "/api/generate")
    assert (path, asked["logprobs"], asked["n_probs"]) == ("/v1/completions", 2, 2)
    _, [(path, _)] = await ask({"model": "base", "prompt": "Once", "system": "x"}, "/api/generate")
    assert path == "/v1/chat/completions"


async def test_embeddings_come_in_order_and_are_shortened_on_request():
    rows = [{"index": 1, "embedding": [0.0, 1.0, 0.0]}, {"index": 0, "embedding": [2.0, 3.0, 6.0]}]
    told = {"data": rows, "usage": {"prompt_tokens": 9, "total_tokens": 9}}

    async def embed(call: stub.Call) -> None:
        await call.send(stub.response(json.dumps(told).encode()))

    reply, [(path, asked)] = await ask({"model": "embedder", "input": ["a", "b"]}, "/api/embed", embed)
    assert (path, asked["input"]) == ("/v1/embeddings", ["a", "b"])
    assert reply.json()["embeddings"] == [[2 / 7, 3 / 7, 6 / 7], [0.0, 1.0, 0.0]]
    assert reply.json()["prompt_eval_count"] == 9
    reply, _ = await ask({"model": "embedder", "input": ["a", "b"], "dimensions": 2}, "/api/embed", embed)
    assert reply.json()["embeddings"][0] == pytest.approx([2 / 13**0.5, 3 / 13**0.5])
    reply, _ = await ask({"model": "embedder", "prompt": "a"}, "/api/embeddings", embed)
    assert reply.json() == {"embedding": [2 / 7, 3 / 7, 6 / 7]}


def takes(most: int, *, batch: bool = False) -> stub.Script:
    """An engine that embeds texts of so many tokens: one for each word, one before and one after them."""

    async def script(call: stub.Call) -> None:
        asked = json.loads(call.body)
        if call.path == b"/tokenize":
            words = [int(word) for word in asked["content"].split()]
            await call.send(stub.response(json.dumps({"tokens": [1, *words, 2]}).encode()))
            return
        lengths = [len(each) if isinstance(each, list) else 2 + len(each.split()) for each in asked["input"]]
        if max(lengths) <= most:
            rows = [{"index": i, "embedding": [1.0]} for i in range(len(lengths))]
            told = {"data": rows, "usage": {"prompt_tokens": sum(lengths)}}
            await call.send(stub.response(json.dumps(told).encode()))
        elif batch:
            message = f"input (9 tokens) is too large to process. increase it (current batch size: {most})"
            error = {"code": 500, "message": message, "type": "server_error"}
            await call.send(
                stub.response(json.dumps({"error": error}).encode(), b"500 Internal Server Error")
            )
        else:
            error = {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": most}
            await call.send(stub.response(json.dumps({"error": error}).encode(), b"400 Bad Request"))

    return script


@pytest.mark.parametrize("batch", [False, True])
async def test_texts_that_are_too_long_are_cut_where_they_end_as_the_model_expects(batch):
    texts = ["11 12 13 14", "21"]
    reply, calls = await ask({"model": "embedder", "input": texts}, "/api/embed", takes(5, batch=batch))
    assert (reply.status, reply.json()["prompt_eval_count"]) == (200, 5 + 3)
    assert calls[-1][1]["input"] == [[1, 11, 12, 13, 2], "21"]
    for path, payload in (
        ("/api/embed", {"input": texts, "truncate": False}),
        ("/api/embeddings", {"prompt": texts[0]}),
    ):
        reply, calls = await ask({"model": "embedder", **payload}, path, takes(5, batch=batch))
        assert (reply.status, len(calls)) == (400, 1)
        assert "exceeds the context length" in reply.error


async def test_other_refusals_of_an_engine_that_embeds_are_passed_on():
    async def refuse(call: stub.Call) -> None:
        await call.send(stub.response(b'{"error":{"message":"no","type":"x"}}', b"418 I'm a teapot"))

    reply, calls = await ask({"model": "embedder", "input": "a"}, "/api/embed", refuse)
    assert (reply.status, reply.json(), len(calls)) == (418, {"error": "no"}, 1)


async def test_an_empty_request_loads_and_a_keep_alive_of_zero_unloads():
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), models=MODELS)
    async with serving(router) as port:
        loaded = (await post(port, {"model": "llama", "keep_alive": -1}, "/api/generate")).json()
        unloaded = (await post(port, {"model": "llama", "messages": [], "keep_alive": 0}, "/api/chat")).json()
        await post(port, {"model": "embedder", "keep_alive": 0}, "/api/generate")
        for path, payload, told in (
            ("/api/embed", {"input": []}, {"model": "embedder", "embeddings": []}),
            ("/api/embeddings", {}, {"embedding": []}),
        ):
            held = await post(port, {"model": "embedder", "keep_alive": 9, **payload}, path)
            assert held.json() == told
    assert (loaded["done_reason"], loaded["response"]) == ("load", "")
    assert unloaded["done_reason"] == "unload"
    # The one that is not loaded is not loaded to be unloaded.
    assert [terms.keep_alive_s for terms in router.terms] == [float("inf"), 0, 9, 9]
    assert router.released == [False] * 4


async def test_a_client_that_leaves_while_its_model_loads_gives_up_its_place():
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), slots=0, models=MODELS)
    async with serving(router) as port, connected(port) as client:
        client.post({"model": "llama"}, "/api/generate")
        await until(lambda: len(router.waiting) == 1)
        client.leave()
        await until(lambda: not router.waiting)
    assert router.held == set()


async def test_a_client_that_leaves_ends_its_generation():
    router = None
    async with StubEngine(stub.stream_for_ever) as engine:
        router = SlotRouter(engine.endpoint, models=MODELS)
        async with serving(router) as port, connected(port) as client:
            client.post({"model": "llama", "messages": HELLO}, "/api/chat")
            call = await engine.call()
            client.leave()
            await asyncio.wait_for(call.closed.wait(), 60)
            await until(lambda: router.released == [True])


async def test_an_engine_that_dies_unasked_is_asked_again_elsewhere():
    asked = 0

    async def die_once(call: stub.Call) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            call.writer.transport.abort()
        else:
            await WORDS(call)

    reply, calls = await ask({"model": "llama", "messages": HELLO, "stream": False}, script=die_once)
    assert (reply.status, len(calls)) == (200, 2)
    assert reply.json()["message"]["content"] == "one two"


async def break_off(call: stub.Call) -> None:
    await call.send(stub.STREAM_HEAD)
    await call.send_event(b'{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}')
    call.writer.close()


async def complain(call: stub.Call) -> None:
    await call.send(stub.STREAM_HEAD)
    await call.send_event(b'{"error":{"code":500,"message":"the context is full"}}')
    await call.send(b"0\r\n\r\n")
    call.writer.close()


async def stop_short(call: stub.Call) -> None:
    await call.send(stub.STREAM_HEAD)
    await call.send_event(b'{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}')
    await call.send(b"0\r\n\r\n")
    call.writer.close()


async def garble(call: stub.Call) -> None:
    await call.send(stub.STREAM_HEAD)
    await call.send_event(b'{"choices":3}')
    await call.send_event(b'{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}')
    await call.send(b"0\r\n\r\n")
    call.writer.close()


async def chatter(call: stub.Call) -> None:
    await call.send(stub.response(b'{"data":3}'))


async def hold_back(call: stub.Call) -> None:
    await call.send(stub.response(b'{"data":[]}'))


async def test_an_answer_of_no_known_shape_is_told_as_such():
    for path, payload, script in (
        ("/api/chat", {"messages": HELLO, "stream": False}, chatter),
        ("/api/embed", {"input": "a"}, chatter),
        ("/api/embed", {"input": "a"}, hold_back),
        ("/api/embeddings", {"prompt": "a"}, hold_back),
    ):
        reply, _ = await ask({"model": "llama", **payload}, path, script)
        assert reply.status == 502
        assert "engine" in reply.error


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (garble, "unknown shape"),
        (break_off, "closed the connection"),
        (complain, "context is full"),
        (stop_short, "before the answer"),
    ],
)
async def test_a_stream_that_breaks_is_told_as_an_error_line_or_a_status(script, why):
    reply, _ = await ask({"model": "llama", "messages": HELLO}, script=script)
    assert why in lines(reply.body)[-1]["error"]
    reply, _ = await ask({"model": "llama", "messages": HELLO, "stream": False}, script=script)
    assert reply.status == (500 if script is complain else 502)
    assert why in reply.error


@pytest.mark.parametrize("kind", [None, *EngineKind])
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_engine_is_asked_for_a_stream_and_counts_only_where_the_client_wants_one_or_it_is_known(
    kind, streaming
):
    payload = {"model": "llama", "messages": HELLO, "stream": streaming, "keep_alive": "5m"}
    async with StubEngine(WORDS, kind) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, payload, "/api/chat")
    asked = json.loads(engine.calls[0].body)
    known = kind in (EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.OLLAMA)
    assert asked.get("stream", False) is (streaming or kind is EngineKind.LLAMA_CPP)
    assert ("stream_options" in asked) is (asked.get("stream", False) and known)
    assert "keep_alive" not in asked
    assert lines(reply.body)[-1]["done"] is True


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "hm"}, {"content": "hi"}],
        [{"reasoning": "hm", "reasoning_content": None}, {"content": "hi"}],
        [{"reasoning": "hm", "reasoning_content": "hm"}, {"content": "hi"}],
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            {"content": "hi"},
        ],
        [{"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]}],
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
async def test_thoughts_are_thinking_whatever_the_engine_calls_them(deltas, streaming):
    payload = {"model": "llama", "messages": HELLO, "stream": streaming}
    async with (
        StubEngine(streams(*deltas), EngineKind.REMOTE) as engine,
        serving(SlotRouter(engine.endpoint)) as port,
    ):
        reply = await post(port, payload, "/api/chat")
    messages = [line["message"] for line in lines(reply.body)]
    assert "".join(message.get("thinking", "") for message in messages) == "hm"
    assert "".join(message["content"] for message in messages) == "hi"


async def test_a_stream_without_a_reason_or_usage_is_whole_once_it_says_done():
    async def script(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        await call.send_event(b'{"choices":[{"index":0,"delta":{"content":"hi"}}],"error":null,"usage":null}')
        await call.send_event(b"[DONE]")
        await call.send(b"0\r\n\r\n")

    reply, _ = await ask({"model": "llama", "messages": HELLO}, script=script)
    assert lines(reply.body)[-1]["done_reason"] == "stop"


def sent(body: bytes, content_type: bytes = b"text/event-stream") -> stub.Script:
    """A response with this body, in pieces of a few bytes."""

    async def script(call: stub.Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: " + content_type + b"\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for start in range(0, len(body), 37):
            piece = body[start : start + 37]
            await call.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await call.send(b"0\r\n\r\n")

    return script


HI = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def as_events(*payloads: Any, end: bytes = b"\n\n", field: bytes = b"data: ") -> bytes:
    return b"".join(
        field + (each if isinstance(each, bytes) else json.dumps(each).encode()) + end for each in payloads
    )


def over_lines(payload: Any) -> bytes:
    pretty = json.dumps(payload, indent=1).encode().split(b"\n")
    return as_events(*pretty, end=b"\n") + b"\n"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(as_events(HI, STOP, b"[DONE]", end=b"\r\n\r\n"), id="CRLF"),
        pytest.param(as_events(HI, STOP, b"[DONE]", end=b"\n"), id="one line end"),
        pytest.param(as_events(HI, STOP, b"[DONE]", field=b"data:"), id="no space"),
        pytest.param(
            b": ping\n\nretry: 9\nid: 1\n" + as_events(HI) + b":\n\n" + as_events(STOP), id="comments"
        ),
        pytest.param(b"\xef\xbb\xbf" + as_events(HI, STOP), id="byte order mark"),
        pytest.param(over_lines(HI) + over_lines(STOP) + as_events(b"[DONE]"), id="several lines"),
        pytest.param(as_events(HI) + as_events(STOP).rstrip(), id="no line end"),
        pytest.param(as_events(HI) + b"data: [DONE]", id="no line end after the mark"),
        pytest.param(as_events(b"", b"null", HI, {"choices": [None]}, STOP), id="nothing"),
        pytest.param(as_events({"choices": [], "usage": None}, HI, STOP), id="no choices"),
        pytest.param(as_events(HI, {**STOP, "usage": {"prompt_tokens": None}, "timings": None}), id="nulls"),
    ],
)
@pytest.mark.parametrize(
    "content_type", [b"text/event-stream", b"Text/Event-Stream; charset=UTF-8", b"text/plain"]
)
async def test_a_stream_is_read_in_every_form_that_servers_send(body, content_type):
    if content_type == b"text/plain" and not body.startswith((b"data:", b":")):
        pytest.skip("only what looks like a stream is read as one")
    reply, _ = await ask({"model": "llama", "messages": HELLO}, script=sent(body, content_type))
    told = lines(reply.body)
    assert "".join(each["message"]["content"] for each in told) == "hi"
    assert (told[-1]["done_reason"], told[-1]["prompt_eval_count"], told[-1]["eval_count"]) == ("stop", 0, 0)


@pytest.mark.parametrize(
    "failure",
    [
        as_events({"error": {"message": "WHY"}}),
        as_events({"error": "WHY"}),
        as_events({"object": "error", "message": "WHY", "code": 400}, b"[DONE]"),
        as_events({"type": "error", "error": {"type": "overloaded_error", "message": "WHY"}}),
        as_events({"detail": "WHY"}),
        as_events(
            {"choices": [{"delta": {}, "finish_reason": "error", "error": {"message": "WHY"}}]}, b"[DONE]"
        ),
        b"event: error\n" + as_events({"message": "WHY"}),
        as_events({"code": 500, "message": "WHY"}, field=b"error: "),
        as_events(b"WHY is no JSON"),
        as_events(b"<html><h1>WHY</h1></html>"),
    ],
)
async def test_a_stream_that_fails_says_why_in_every_form_that_servers_send(failure):
    reply, _ = await ask({"model": "llama", "messages": HELLO}, script=sent(as_events(HI) + failure))
    assert "WHY" in lines(reply.body)[-1]["error"]
    assert "done" not in lines(reply.body)[-1]


async def test_a_page_in_place_of_an_answer_is_quoted():
    page = sent(b"<html><h1>WHY</h1></html>", b"text/html")
    reply, _ = await ask({"model": "llama", "messages": HELLO, "stream": False}, script=page)
    assert (reply.status, "WHY" in reply.error) == (502, True)


@pytest.mark.parametrize(
    ("path", "payload", "status", "why"),
    [
        ("/api/chat", {"model": "none", "messages": HELLO}, 404, "model 'none' not found"),
        ("/api/chat", {"messages": HELLO}, 400, "`model` is required"),
        ("/api/generate", {"name": "llama", "prompt": "a"}, 400, "`model` is required"),
        ("/api/chat", {"model": "embedder", "messages": HELLO}, 400, '"embedder" does not support chat'),
        ("/api/generate", {"model": "embedder", "prompt": "a"}, 400, '"embedder" does not support generate'),
        ("/api/generate", {"model": "embedder"}, 400, '"embedder" does not support generate'),
        ("/api/embed", {"model": "seen", "input": "a"}, 400, "model for text"),
        ("/api/embed", {"model": "embedder", "input": 3}, 400, "`input`"),
        ("/api/embed", {"model": "embedder", "input": ["a", 3]}, 400, "`input`"),
        ("/api/embed", {"model": "embedder", "input": "a", "dimensions": "x"}, 400, "`dimensions`"),
        ("/api/chat", {"model": "llama", "messages": HELLO, "top_logprobs": 21}, 400, "top_logprobs"),
        ("/api/chat", {"model": "llama", "messages": "hello"}, 400, "`messages` is not a list"),
        ("/api/chat", {"model": "llama", "messages": HELLO, "format": "xml"}, 400, "`format`"),
        ("/api/chat", {"model": "llama", "messages": HELLO, "think": 3}, 400, "`think`"),
        ("/api/chat", {"model": "llama", "messages": HELLO, "stream": 1}, 400, "`stream`"),
        ("/api/chat", {"model": "llama", "messages": HELLO, "keep_alive": "soon"}, 400, "`keep_alive`"),
        ("/api/chat", {"model": "llama", "messages": HELLO, "options": {"seed": "x"}}, 400, "options.seed"),
        ("/api/generate", {"model": "pictured", "prompt": "a", "images": ["%"]}, 400, "base64"),
        ("/api/generate", {"model": "llama", "prompt": "a", "suffix": "b"}, 501, "suffix"),
        ("/api/generate", {"model": "llama", "prompt": "a", "context": [1]}, 501, "/api/chat"),
        ("/api/generate", {"model": "llama", "prompt": "a", "raw": True, "system": "b"}, 400, "raw"),
        ("/api/generate", {"model": "llama", "prompt": "a", "raw": True, "format": "json"}, 501, "raw"),
        ("/api/show", {"model": "none"}, 404, "not found"),
        ("/api/pull", {"model": "llama3.2"}, 501, "models_dir"),
        ("/api/create", {"model": "x"}, 501, "not offered"),
        ("/api/blobs/sha256:ab", {}, 501, "/api/blobs is not offered"),
        ("/api/me", {}, 501, "no accounts"),
    ],
)
async def test_faults_are_one_line_in_ollamas_form(path, payload, status, why):
    reply, calls = await ask(payload, path)
    assert (reply.status, calls) == (status, [])
    assert reply.json().keys() == {"error"}
    assert why in reply.error


async def test_an_engines_refusal_is_passed_on_in_ollamas_form():
    async def refuse(call: stub.Call) -> None:
        error = b'{"error":{"code":400,"message":"the prompt is too long","type":"invalid_request_error"}}'
        await call.send(stub.response(error, b"400 Bad Request"))

    reply, _ = await ask({"model": "llama", "messages": HELLO}, script=refuse)
    assert (reply.status, reply.json()) == (400, {"error": "the prompt is too long"})


async def test_models_are_listed_shown_and_told_to_be_loaded():
    operator = PlainOperator(ModelStatus("seen", "ready", keep_alive_left_s=60.0, predicted_bytes=5_000))
    recipe = Recipe(engine=EngineKind.OLLAMA)
    elsewhere = ServedModel("elsewhere", ModelKind.TEXT, created_at=1, state="cold", recipe=recipe)
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), models=(*MODELS, elsewhere))
    async with serving(router, operator) as port:
        tags = (await fetch(port, "GET", "/api/tags")).json()["models"]
        shown = (await post(port, {"model": "seen"}, "/api/show")).json()
        embedder = (await post(port, {"name": "embedder:latest"}, "/api/show")).json()
        elsewhere = (await post(port, {"model": "elsewhere"}, "/api/show")).json()
        running = (await fetch(port, "GET", "/api/ps")).json()["models"]
        version = (await fetch(port, "GET", "/api/version")).json()
    assert [each["name"] for each in tags] == [
        "llama:latest",
        "seen:latest",
        "pictured:latest",
        "embedder:latest",
        "elsewhere:latest",
    ]
    assert tags[1]["modified_at"] == "2023-11-14T22:13:20Z"
    assert tags[2]["details"]["families"] == ["llama", "clip"]
    assert tags[1]["size"] == 4_000_000
    assert tags[1]["details"]["parameter_size"] == "3.21B"
    assert tags[1]["details"]["quantization_level"] == "Q4_K_M"
    assert len({each["digest"] for each in tags}) == 5
    assert shown["model_info"]["llama.context_length"] == 131072
    assert shown["capabilities"] == ["completion", "tools"]
    assert embedder["capabilities"] == ["embedding"]
    assert elsewhere["parameters"] == "", "Ollama decides on a context itself"
    assert [each["name"] for each in running] == ["llama:latest", "pictured:latest", "seen:latest"]
    assert (running[2]["size"], running[2]["size_vram"], running[2]["context_length"]) == (5_000, 5_000, 8192)
    assert running[2]["expires_at"].endswith("Z")
    assert version["version"].count(".") == 2


async def test_a_keep_alive_beyond_the_calendar_expires_in_a_century():
    operator = PlainOperator(ModelStatus("llama", "ready", keep_alive_left_s=1e12))
    async with serving(SlotRouter(stub.Endpoint("127.0.0.1", 1)), operator) as port:
        running = await fetch(port, "GET", "/api/ps")
    assert running.status == 200
    assert int(running.json()["models"][0]["expires_at"][:4]) < 2200


async def test_a_name_may_have_the_tag_the_registry_and_the_capitals_that_ollama_minds_not():
    for name in ("Seen", "library/seen", "registry.ollama.ai/library/seen:latest", "SEEN:LATEST"):
        reply, [(_, asked)] = await ask({"model": name, "messages": HELLO, "stream": False})
        assert (reply.json()["model"], asked["model"]) == (name, "seen")
    reply, calls = await ask({"model": "seen:7b", "messages": HELLO})
    assert (reply.status, calls) == (404, [])


async def test_a_blob_that_a_client_asks_for_is_not_here():
    async with serving(SlotRouter(stub.Endpoint("127.0.0.1", 1), models=MODELS)) as port:
        assert (await fetch(port, "HEAD", "/api/blobs/sha256:ab")).status == 404


async def test_a_missing_key_and_a_wrong_method_are_told_in_ollamas_form():
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), models=MODELS)
    async with serving(router, api_keys=("key",)) as port:
        reply = await post(port, {"model": "llama", "messages": HELLO}, "/api/chat")
        assert reply.status == 401
        assert "key" in reply.error
        reply = await fetch(port, "GET", "/api/chat", Authorization="Bearer key")
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert "does not support GET" in reply.error


class PlainPuller:
    """Pulls nothing, in steps that a test scripts; `ended` is set when its reader has gone."""

    def __init__(self, *steps: PullStep | CotenantError) -> None:
        self.steps = steps
        self.names: list[str] = []
        self.told = 0
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def pull(self, name: str) -> AsyncGenerator[PullStep, None]:
        self.names.append(name)
        self.begun.set()
        try:
            for step in self.steps:
                if isinstance(step, CotenantError):
                    raise step
                self.told += 1
                yield step
                await asyncio.sleep(0)
        finally:
            self.ended.set()


STEPS = (PullStep("asking"), PullStep("pulling a.gguf", "a.gguf", "ab", 100, 40))


async def pull(puller: PlainPuller, payload: object):
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), models=MODELS)
    async with serving(router, puller=puller) as port:
        return await post(port, payload, "/api/pull")


@pytest.mark.parametrize(
    "fault", [BadHubName("no name"), NotOffered("no folder"), NotOnHub("not there"), HubSilent("offline")]
)
@pytest.mark.parametrize("name", ["llama", "LLAMA:latest", "gpt-4o"])
async def test_a_pull_of_what_is_served_has_succeeded(fault, name):
    reply = await pull(PlainPuller(fault), {"model": name})
    assert (reply.status, lines(reply.body)) == (200, [{"status": "success"}])
    reply = await pull(PlainPuller(fault), {"model": name, "stream": False})
    assert (reply.status, reply.json()) == (200, {"status": "success"})
    reply = await pull(PlainPuller(fault), {"model": "stranger"})
    assert reply.status >= 400


async def test_a_pull_is_told_step_by_step():
    puller = PlainPuller(*STEPS)
    reply = await pull(puller, {"model": "hf.co/org/repo:Q4_K_M"})
    assert lines(reply.body) == [
        {"status": "asking"},
        {"status": "pulling a.gguf", "digest": "sha256:ab", "total": 100, "completed": 40},
        {"status": "success"},
    ]
    assert puller.names == ["hf.co/org/repo:Q4_K_M"]
    reply = await pull(PlainPuller(*STEPS), {"name": "hf.co/org/repo", "stream": False})
    assert reply.json() == {"status": "success"}


async def test_a_pull_that_fails_is_told_by_a_status_or_by_the_last_line():
    fault = NotOnHub("there is no such thing", hint="Look again.")
    reply = await pull(PlainPuller(fault), {"model": "hf.co/org/repo"})
    assert (reply.status, reply.error) == (404, "there is no such thing. Look again.")
    reply = await pull(PlainPuller(*STEPS, fault), {"model": "hf.co/org/repo"})
    assert lines(reply.body)[-1] == {"error": "there is no such thing. Look again"}
    reply = await pull(PlainPuller(*STEPS, fault), {"model": "hf.co/org/repo", "stream": False})
    assert reply.status == 404


async def test_a_wrong_stream_is_refused_before_a_pull_begins():
    puller = PlainPuller(*STEPS)
    reply = await pull(puller, {"model": "hf.co/org/repo", "stream": "no"})
    assert (reply.status, puller.names) == (400, [])


async def test_a_client_that_leaves_ends_a_pull_that_is_told_at_its_end_only():
    puller = PlainPuller(*STEPS * 100_000)
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), models=MODELS)
    async with serving(router, puller=puller) as port, connected(port) as client:
        client.post({"model": "hf.co/org/repo", "stream": False}, "/api/pull")
        await asyncio.wait_for(puller.begun.wait(), 60)
        client.leave()
        await asyncio.wait_for(puller.ended.wait(), 60)
        assert puller.told < len(puller.steps)


async def test_a_client_that_leaves_ends_its_pull():
    puller = PlainPuller(*STEPS * 100_000)
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), models=MODELS)
    async with serving(router, puller=puller) as port, connected(port) as client:
        client.post({"model": "hf.co/org/repo"}, "/api/pull")
        await client.head()
        client.leave()
        await asyncio.wait_for(puller.ended.wait(), 60)
