"""Dialects that are passed to engines: which models answer them, and how what goes wrong is told."""

import json

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.requests import ModelFile, ServedModel
from cotenant.gateway.inference.dialects import TARGETS
from tests.gateway import stub
from tests.gateway.harness import MODEL, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

FILE = ModelFile("/models/a.gguf", 1, "llama", 1, None, 1, None)
RANKER = ServedModel("ranker", ModelKind.RERANK, created_at=1, file=FILE)
TALKER = ServedModel("talker", ModelKind.TEXT, created_at=1, file=FILE)
FOREIGN = ServedModel(
    "foreign", ModelKind.TEXT, created_at=1, file=FILE, recipe=Recipe(engine=EngineKind.VLLM)
)
MODELS = (MODEL, RANKER, TALKER, FOREIGN)
HELLO = {"model": "llama", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}


async def ask(script: stub.Script, payload: object, path: str):
    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint, models=MODELS)) as port:
        reply = await post(port, payload, path)
        return reply, [call.path.decode() for call in engine.calls]


@pytest.mark.parametrize(("path", "target"), TARGETS.items())
async def test_every_path_goes_to_its_engine_as_it_came(path, target):
    payload = {"model": "ranker" if target.kinds == {ModelKind.RERANK} else "llama", "max_tokens": 3}
    reply, paths = await ask(stub.answer, payload, path)
    assert (reply.status, reply.body) == (200, stub.ANSWER)
    assert paths == [target.path.decode()]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (b"404 Not Found", b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}'),
        (b"404 Not Found", b'{"detail":"Not Found"}'),
        (b"405 Method Not Allowed", b"{}"),
        (b"501 Not Implemented", b'{"error":{"message":"This server does not support it"}}'),
    ],
)
async def test_what_an_engine_does_not_speak_is_refused_clearly(path, status, body):
    async def refuse(call: stub.Call) -> None:
        await call.send(stub.response(body, status))

    model = "ranker" if path == "/v1/rerank" else "llama"
    reply, _ = await ask(refuse, {"model": model}, path)
    assert reply.status == 501
    assert reply.headers["x-should-retry"] == "false"
    assert f"does not support {path}" in reply.error["message"]
    assert ("This server does not" in reply.error["message"]) == status.startswith(b"501")
    assert reply.json().get("type") == ("error" if path == "/v1/messages" else None)


async def test_an_engine_that_knows_no_such_model_is_not_taken_for_one_without_the_path():
    async def refuse(call: stub.Call) -> None:
        error = b'{"error":{"message":"The model x does not exist","type":"NotFoundError","code":404}}'
        await call.send(stub.response(error, b"404 Not Found"))

    reply, _ = await ask(refuse, {"model": "llama"}, "/v1/responses")
    assert (reply.status, reply.error["message"]) == (404, "The model x does not exist")


@pytest.mark.parametrize(
    ("model", "path", "refused"),
    [
        ("ranker", "/v1/chat/completions", True),
        ("ranker", "/v1/embeddings", True),
        ("talker", "/v1/rerank", True),
        ("talker", "/v1/embeddings", True),
        ("talker", "/v1/messages", False),
        # Its engine knows better than its file what it can do.
        ("foreign", "/v1/embeddings", False),
        ("llama", "/v1/embeddings", False),
    ],
)
async def test_a_model_is_not_loaded_for_what_it_cannot_do(model, path, refused):
    reply, paths = await ask(stub.answer, {"model": model, "max_tokens": 3}, path)
    assert (reply.status, bool(paths)) == ((400, False) if refused else (200, True))


async def test_a_name_that_means_another_model_by_now_is_looked_up_anew():
    async with StubEngine() as engine:
        router = SlotRouter(engine.endpoint, models=(TALKER,))
        async with serving(router) as port:
            assert (await post(port, {"model": "talker", "max_tokens": 3})).status == 200
            router.served = (ServedModel("talker", ModelKind.EMBEDDING, created_at=2, file=FILE),)
            assert (await post(port, {"model": "talker"}, "/v1/embeddings")).status == 200


@pytest.mark.parametrize(
    ("payload", "keys", "status", "kind"),
    [
        ({**HELLO, "model": "none"}, (), 404, "not_found_error"),
        ({**HELLO, "model": 3}, (), 400, "invalid_request_error"),
        (HELLO, ("key",), 401, "authentication_error"),
    ],
)
async def test_faults_are_told_to_anthropics_clients_in_their_form(payload, keys, status, kind):
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1), models=MODELS)
    async with serving(router, api_keys=keys) as port:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            reply = await post(port, payload, path)
            assert reply.status == status
            assert reply.json()["type"] == "error"
            assert reply.error["type"] == kind
            assert reply.error["message"]


async def test_a_stream_of_messages_that_breaks_ends_with_an_error_event():
    async def break_off(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        await call.send(stub.chunk(b'event: message_start\ndata: {"type":"message_start"}\n\n'))
        call.writer.close()

    reply, _ = await ask(break_off, {**HELLO, "stream": True}, "/v1/messages")
    *_, name, data = reply.body.decode().strip().split("\n")
    assert name == "event: error"
    told = json.loads(data.removeprefix("data: "))
    assert told["type"] == "error"
    assert told["error"]["type"] == "api_error"
    assert "closed the connection" in told["error"]["message"]


async def test_a_client_that_leaves_ends_its_message():
    async with StubEngine(stub.stream_for_ever) as engine:
        router = SlotRouter(engine.endpoint, models=MODELS)
        async with serving(router) as port, connected(port) as client:
            client.post({**HELLO, "stream": True}, "/v1/messages")
            call = await engine.call()
            client.leave()
            await call.closed.wait()
            await until(lambda: router.released == [True])


async def test_tokens_of_messages_and_responses_are_counted():
    usage = b'{"cache_read_input_tokens":4,"input_tokens":3,"output_tokens":0}'
    start = b'{"type":"message_start","message":{"usage":%b}}' % usage

    async def message(call: stub.Call) -> None:
        await call.send(stub.STREAM_HEAD)
        await call.send_event(start)
        await call.send_event(b'{"type":"content_block_delta","delta":{"text":"a"}}')
        await call.send_event(b'{"type":"message_delta","usage":{"output_tokens":5}}')
        await call.send(b"0\r\n\r\n")
        call.writer.close()

    async def answer(call: stub.Call) -> None:
        body = b'{"output":[],"usage":{"input_tokens":10,"output_tokens":20,"total_tokens":30}}'
        await (message(call) if call.path == b"/v1/messages" else call.send(stub.response(body)))

    async with StubEngine(answer) as engine, serving(SlotRouter(engine.endpoint)) as port:
        await post(port, {**HELLO, "stream": True}, "/v1/messages")
        await post(port, {"model": "llama", "input": "a"}, "/v1/responses")
        metrics = (await fetch(port, "GET", "/metrics")).body.decode()
    counted = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in metrics.splitlines()}
    tokens = {name: value for name, value in counted.items() if name.startswith("cotenant_tokens_total")}
    assert sorted(float(value) for value in tokens.values() if float(value)) == [17, 25]
