"""Plain answers in OpenAI's responses and Anthropic's messages, put together from streams."""

import asyncio
import json

import pytest

from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.inference.assembly import SHORT_TOKENS, assemble, stream_body
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

RESPONSES, MESSAGES = b"/v1/responses", b"/v1/messages"
HELLO = {"model": "llama", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hello"}]}


def sse(*events: dict[str, object]) -> bytes:
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
        sse(
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
    status, body = assemble(RESPONSES, sse({"type": "response.created", "response": {}}, WHOLE))
    assert (status, json.loads(body)) == (200, WHOLE["response"])


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize(
    "error", [{"error": {"code": 503, "message": "full"}}, {"type": "error", "code": 503, "message": "full"}]
)
def test_an_error_in_the_stream_becomes_that_error(path: bytes, error: dict[str, object]) -> None:
    status, body = assemble(path, sse({"type": "ping"}, error))
    assert (status, json.loads(body)["error"]["message"]) == (503, "full")


@pytest.mark.parametrize(
    ("path", "events"),
    [
        (MESSAGES, sse(START, *TEXT)),
        (MESSAGES, sse(START, *block(0, {"type": "text", "text": ""}, {"type": "song_delta"}), END)),
        (MESSAGES, sse(START, *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "a"}))),
        (MESSAGES, sse(*TEXT, END)),
        (RESPONSES, sse({"type": "response.created", "response": {}})),
        (RESPONSES, sse({"no": "type"})),
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
        await call.send(stub.chunk(sse(START, *TEXT, END, {"type": "message_stop"})))
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
