import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.http.limits import Timing
from cotenant.gateway.inference.assembly import SHORT_TOKENS, assemble, stream_body
from tests.gateway.harness import CHAT, SlotRouter, post, serving
from tests.gateway.stub import STREAM_HEAD, StubEngine

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


def test_an_error_in_the_stream_is_the_answer() -> None:
    status, body = assemble(
        CHAT.encode(), sse(delta({"content": "a"}), {"error": {"code": 400, "message": "too long"}})
    )
    assert (status, json.loads(body)) == (400, {"error": {"code": 400, "message": "too long"}})


@pytest.mark.parametrize(
    "events", [b"", sse(delta({"content": "a"})), b"data: {nonsense\n\n", b"data: null\n\n"]
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
