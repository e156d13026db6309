import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.http.limits import Timing
from cotenant.gateway.inference.assembly import SHORT_TOKENS, assemble, stream_body
from tests.gateway import stub
from tests.gateway.harness import CHAT, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import STREAM_HEAD, StubEngine
from tests.support.waiting import until

CHAT_PATH, TEXT_PATH = b"/v1/chat/completions", b"/v1/completions"


def sse(*events: object) -> bytes:
    return (
        b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    )


def delta(value: dict[str, object], finish: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": value, "finish_reason": finish}
    return {"choices": [choice], "object": "chat.completion.chunk", "id": "x", "model": "m"}


@pytest.mark.parametrize(
    "request_",
    [
        {"max_tokens": SHORT_TOKENS},
        {"max_completion_tokens": 1},
        {"n_predict": 0},
        {"max_tokens": 9999, "n_predict": 3},
        {"stream": True},
        {"n": 2},
        {"prompt": ["a", "b"]},
        {"max_tokens": "many"},
    ],
)
def test_short_streamed_and_plural_requests_pass_as_they_are(request_: dict[str, object]) -> None:
    assert stream_body(TEXT_PATH, request_, json.dumps(request_).encode()) is None


def test_embeddings_pass_as_they_are() -> None:
    assert stream_body(b"/v1/embeddings", {"input": "x"}, b'{"input": "x"}') is None


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "x"},
        {"prompt": "x", "max_tokens": SHORT_TOKENS + 1},
        {"prompt": "x", "n_predict": -1},
        {"prompt": "x", "max_tokens": None, "n": 1, "stream": False},
        {"prompt": "x", "stream": None, "stream_options": None},
    ],
)
def test_a_request_without_a_small_limit_is_asked_as_a_stream(request_: dict[str, object]) -> None:
    body = stream_body(TEXT_PATH, request_, b" \n" + json.dumps(request_).encode())
    assert body is not None
    asked = json.loads(body)
    assert asked.pop("stream") is True
    assert asked.pop("stream_options") == {"include_usage": True}
    assert asked == {k: v for k, v in request_.items() if k not in ("stream", "stream_options")}


def test_tool_calls_reasoning_and_text_come_together() -> None:
    status, body = assemble(
        CHAT.encode(),
        sse(
            delta({"role": "assistant", "content": None}),
            delta({"reasoning_content": "let me "}),
            delta({"reasoning_content": "see"}),
            delta({"content": "Sun"}),
            delta({"content": "ny"}),
            delta(
                {
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "a",
                            "type": "function",
                            "function": {"name": "f", "arguments": ""},
                        }
                    ]
                }
            ),
            delta({"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]}),
            delta(
                {
                    "tool_calls": [
                        {
                            "index": 1,
                            "id": "b",
                            "type": "function",
                            "function": {"name": "g", "arguments": "{}"},
                        }
                    ]
                }
            ),
            delta({"tool_calls": [{"index": 0, "function": {"arguments": 'ty":1}'}}]}),
            delta({}, "tool_calls"),
            {"choices": [], "usage": {"total_tokens": 9}, "object": "chat.completion.chunk"},
        ),
    )
    answer = json.loads(body)
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["usage"] == {"total_tokens": 9}
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Sunny",
        "reasoning_content": "let me see",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"city":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COUNTED = {"choices": [], "usage": USAGE}


def call(arguments: object = None, **more: object) -> dict[str, object]:
    return delta({"tool_calls": [{"function": {"arguments": arguments}, **more}]})


def begin(arguments: object, number: str = "t1", name: str = "f", **more: object) -> dict[str, object]:
    function = {"name": name, "arguments": arguments}
    return delta({"tool_calls": [{"id": number, "type": "function", "function": function, **more}]})


ONE_CALL = [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
TWO_CALLS = [*ONE_CALL, {"id": "t2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("events", "calls"),
    [
        pytest.param(
            [
                begin("", index=0),
                delta({"tool_calls": [{"index": 0, "id": None, "function": {"name": None}}]}),
                call('{"a":1}', index=0, id="", type=None),
            ],
            ONE_CALL,
            id="nulls in later pieces",
        ),
        pytest.param([begin('{"a"'), call(":1}")], ONE_CALL, id="no index"),
        pytest.param([begin('{"a":1}', index=None)], ONE_CALL, id="index null"),
        pytest.param([begin(None, index=0), call('{"a":1}', index=0)], ONE_CALL, id="arguments null"),
        pytest.param([begin({"a": 1}, index=0)], None, id="arguments as an object"),
        pytest.param(
            [begin('{"a":1}', index=0), delta({"tool_calls": [{"index": 0, "function": None}]})],
            ONE_CALL,
            id="function null",
        ),
        pytest.param(
            [delta({"tool_calls": None}), begin('{"a":1}', index=0), delta({"tool_calls": []})],
            ONE_CALL,
            id="tool_calls null",
        ),
        pytest.param(
            [begin('{"a":1}', index=0), begin("{}", "t2", "g", index=0)], TWO_CALLS, id="all numbered 0"
        ),
        pytest.param([begin('{"a":'), begin("{}", "t2", "g"), call("1}", id="t1")], TWO_CALLS, id="by id"),
        pytest.param(
            [begin("{}", "t2", "g", index=1), begin('{"a":1}', index=0)], TWO_CALLS, id="out of order"
        ),
        pytest.param(
            [begin('{"a":1}', index=0, extra_content={"google": {"thought_signature": "s"}})],
            [{**ONE_CALL[0], "extra_content": {"google": {"thought_signature": "s"}}}],
            id="unknown fields",
        ),
    ],
)
def test_tool_calls_come_together_in_every_form_that_servers_send(events, calls) -> None:
    _, body = assemble(CHAT_PATH, sse(delta({"content": ""}), *events, delta({}, "tool_calls"), COUNTED))
    message = json.loads(body)["choices"][0]["message"]
    found = message["tool_calls"]
    if calls is None:
        assert json.loads(found[0]["function"]["arguments"]) == {"a": 1}
    else:
        assert found == calls
    assert (message["role"], message["content"]) == ("assistant", "")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([delta({"role": None, "content": "hi", "tool_calls": None}), delta({"content": None}, "stop")], {}),
        ([delta({"content": "hi"}), {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}], {}),
        ([{**delta({"content": "hi"}, "stop"), "error": None}, {"choices": None}], {}),
        ([delta({"content": "hi"})], {}),
        (
            [
                delta({"reasoning_details": [{"text": "h"}]}),
                delta({"reasoning_details": [{"text": "m"}]}),
                delta({"content": "hi"}, "stop"),
            ],
            {"reasoning_details": [{"text": "h"}, {"text": "m"}]},
        ),
        (
            [
                delta({"function_call": {"name": "f", "arguments": "{"}}),
                delta({"content": "hi", "function_call": {"arguments": "}"}}, "stop"),
            ],
            {"function_call": {"name": "f", "arguments": "{}"}},
        ),
        (
            [delta({"content": [{"type": "thinking", "thinking": []}]}), delta({"content": "hi"}, "stop")],
            {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "hi"}]},
        ),
    ],
)
def test_nulls_mean_nothing_and_lists_and_unknown_fields_are_kept(events, expected) -> None:
    status, body = assemble(CHAT_PATH, sse(*events, COUNTED, {"choices": [], "usage": None}))
    answer = json.loads(body)
    assert status == 200
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hi", **expected}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == USAGE


def test_an_error_in_the_stream_is_the_answer() -> None:
    status, body = assemble(
        CHAT.encode(), sse(delta({"content": "a"}), {"error": {"code": 400, "message": "too long"}})
    )
    assert (status, json.loads(body)) == (400, {"error": {"code": 400, "message": "too long"}})


@pytest.mark.parametrize(
    "events",
    [
        b"",
        sse(),
        sse(delta({"content": "a"})).removesuffix(b"data: [DONE]\n\n"),
        b"data: {nonsense\n\n",
        b"data: null\n\n",
    ],
)
def test_a_stream_that_does_not_end_properly_is_no_answer(events: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        assemble(CHAT.encode(), events)


_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
_NAMES = st.sampled_from(
    ["choices", "delta", "text", "logprobs", "tool_calls", "finish_reason", "error", "index", "function"]
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.lists(st.dictionaries(_NAMES, _VALUES, max_size=4), max_size=4))
def test_events_of_any_shape_are_an_answer_or_the_engines_fault(events: list[dict[str, object]]) -> None:
    last = {"choices": [{"finish_reason": "stop"}]}
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (*events, last))
    try:
        status, body = assemble(CHAT.encode(), stream)
    except UpstreamFailed:
        return
    assert 200 <= status < 600
    json.loads(body)


def test_events_nested_without_end_are_the_engines_fault() -> None:
    with pytest.raises(UpstreamFailed):
        assemble(CHAT.encode(), b'data: {"choices":' + b"[" * 100_000 + b"\n\n")


def test_a_tool_call_of_an_absurd_number_is_the_engines_fault() -> None:
    call = {"choices": [{"delta": {"tool_calls": [{"index": 10**12}]}, "finish_reason": "stop"}]}
    with pytest.raises(UpstreamFailed):
        assemble(CHAT.encode(), b"data: " + json.dumps(call).encode() + b"\n\n")


async def test_the_client_sees_a_plain_answer_and_the_engine_a_stream() -> None:
    async def script(call) -> None:
        assert json.loads(call.body)["stream"] is True
        await call.send(STREAM_HEAD)
        await call.send_event(json.dumps(delta({"content": "he"})).encode())
        await call.send_event(json.dumps(delta({"content": "y"}, "stop")).encode())
        await call.send(b"0\r\n\r\n")

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        reply = await post(port, {"model": "llama", "messages": []}, path=CHAT)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "hey"
    assert router.released == [False]


@pytest.mark.parametrize("kind", [kind for kind in EngineKind if kind is not EngineKind.LLAMA_CPP])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_other_engines_get_a_plain_request_as_the_client_sent_it(kind: EngineKind, path: str) -> None:
    body = json.dumps({**HELLO, "prompt_logprobs": 1}).encode()
    async with StubEngine(kind=kind) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await fetch(port, "POST", path, body)
    assert (reply.status, reply.body) == (200, stub.ANSWER)
    assert engine.calls[0].body == body


async def test_an_engine_that_dies_in_a_long_plain_answer_is_a_502() -> None:
    async def script(call) -> None:
        await call.send(STREAM_HEAD)
        await call.send_event(json.dumps(delta({"content": "he"})).encode())
        call.writer.close()

    timing = Timing(notice_s=0)
    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint), timing=timing) as port:
        reply = await post(port, {"model": "llama", "messages": []}, path=CHAT)
    assert reply.status == 502
    assert "error" in json.loads(reply.body)


# OpenAI's responses and Anthropic's messages.

RESPONSES, MESSAGES = b"/v1/responses", b"/v1/messages"
HELLO = {"model": "llama", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hello"}]}


def typed_sse(*events: dict[str, object]) -> bytes:
    return b"".join(
        b"event: " + str(event.get("type")).encode() + b"\ndata: " + json.dumps(event).encode() + b"\n\n"
        for event in events
    )


def block(index: int, start: dict[str, object], *deltas: dict[str, object]) -> list[dict[str, object]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


START = {
    "type": "message_start",
    "message": {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "llama",
        "stop_reason": None,
        "usage": {"cache_read_input_tokens": 4, "input_tokens": 3, "output_tokens": 0},
    },
}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
TEXT = block(
    0, {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in ("Hel", "lo"))
)
WHOLE = {
    "type": "response.completed",
    "response": {"id": "r1", "status": "completed", "output": [{"a": "é"}]},
    "sequence_number": 9,
}


def test_a_message_is_put_together_of_its_blocks() -> None:
    status, body = assemble(
        MESSAGES,
        typed_sse(
            START,
            *block(
                0,
                {"type": "thinking", "thinking": "", "signature": ""},
                {"type": "thinking_delta", "thinking": "Hm"},
                {"type": "thinking_delta", "thinking": "m"},
                {"type": "signature_delta", "signature": "s"},
            ),
            {"type": "ping"},
            *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Look: "}),
            *block(
                2,
                {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
                {"type": "input_json_delta", "partial_json": '{"where": '},
                {"type": "input_json_delta", "partial_json": '"here"}'},
            ),
            *block(3, {"type": "tool_use", "id": "t2", "name": "wait", "input": {}}),
            {**END, "delta": {"stop_reason": "tool_use", "stop_sequence": None}},
            {"type": "message_stop"},
        ),
    )
    assert status == 200
    assert json.loads(body) == {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "llama",
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "content": [
            {"type": "thinking", "thinking": "Hmm", "signature": "s"},
            {"type": "text", "text": "Look: "},
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"where": "here"}},
            {"type": "tool_use", "id": "t2", "name": "wait", "input": {}},
        ],
        "usage": {"cache_read_input_tokens": 4, "input_tokens": 3, "output_tokens": 5},
    }


def test_a_response_is_what_its_last_event_says() -> None:
    status, body = assemble(RESPONSES, typed_sse({"type": "response.created", "response": {}}, WHOLE))
    assert (status, json.loads(body)) == (200, WHOLE["response"])


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize(
    "error", [{"error": {"code": 503, "message": "full"}}, {"type": "error", "code": 503, "message": "full"}]
)
def test_an_error_in_the_stream_becomes_that_error(path: bytes, error: dict[str, object]) -> None:
    status, body = assemble(path, typed_sse({"type": "ping"}, error))
    assert (status, json.loads(body)["error"]["message"]) == (503, "full")


@pytest.mark.parametrize(
    ("path", "events"),
    [
        (MESSAGES, typed_sse(START, *TEXT)),
        (MESSAGES, typed_sse(START, *block(0, {"type": "text", "text": ""}, {"type": "song_delta"}), END)),
        (
            MESSAGES,
            typed_sse(START, *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "a"})),
        ),
        (MESSAGES, typed_sse(*TEXT, END)),
        (RESPONSES, typed_sse({"type": "response.created", "response": {}})),
        (RESPONSES, typed_sse({"no": "type"})),
        (RESPONSES, b"data: {\n\n"),
    ],
)
def test_what_breaks_off_or_has_another_shape_is_a_fault_of_the_engine(path: bytes, events: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        assemble(path, events)


@pytest.mark.parametrize(
    ("path", "limit"), [(RESPONSES, "max_output_tokens"), (MESSAGES, "max_tokens"), (RESPONSES, "background")]
)
def test_short_ones_and_those_that_are_not_waited_for_pass_as_they_are(path: bytes, limit: str) -> None:
    short = {"model": "m", limit: SHORT_TOKENS}
    assert stream_body(path, short, json.dumps(short).encode()) is None
    long = {"model": "m", "max_tokens": SHORT_TOKENS + 1}
    asked = json.loads(stream_body(path, long, json.dumps(long).encode()) or b"")
    assert asked == {**long, "stream": True}, "neither dialect knows `stream_options`"


async def test_a_long_plain_message_is_asked_as_a_stream_and_answered_whole_and_counted() -> None:
    async def script(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        await call.send(stub.chunk(typed_sse(START, *TEXT, END, {"type": "message_stop"})))
        await call.send(b"0\r\n\r\n")

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, HELLO, "/v1/messages")
        metrics = (await fetch(port, "GET", "/metrics")).body.decode()
    assert json.loads(engine.calls[0].body)["stream"] is True
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["content"] == [{"type": "text", "text": "Hello"}]
    counted = [line for line in metrics.splitlines() if line.startswith("cotenant_tokens_total{")]
    assert sorted(float(line.rpartition(" ")[2]) for line in counted) == [5, 7]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_a_client_that_leaves_a_plain_request_stops_its_stream(path: str) -> None:
    async with (
        StubEngine(stub.stream_for_ever) as engine,
        serving(router := SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        client.post(HELLO, path)
        call = await engine.call()
        assert json.loads(call.body)["stream"] is True
        client.leave()
        await asyncio.wait_for(call.closed.wait(), 60)
        await until(lambda: router.released == [True])


async def test_an_error_that_comes_in_the_stream_of_a_plain_message_is_told_in_anthropics_form() -> None:
    async def script(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        await call.send_event(b'{"error":{"code":400,"message":"too long","type":"invalid_request_error"}}')
        await call.send(b"0\r\n\r\n")

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, HELLO, "/v1/messages")
    assert (reply.status, reply.json()["type"], reply.error["message"]) == (400, "error", "too long")
