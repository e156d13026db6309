"""The real openai client against the gateway."""

import contextlib
import json

import openai
import pytest

from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.requests import WaitProgress
from cotenant.gateway.http.limits import Timing
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, serving
from tests.gateway.stub import StubEngine

pytestmark = pytest.mark.slow  # the client alone takes a quarter of a second to build

HELLO = [{"role": "user", "content": "Hello"}]
_COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "llama",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"},
    ],
}


async def _engine(call: stub.Call) -> None:
    request = json.loads(call.body)
    if request.get("max_tokens") == -7:
        error = b'{"error":{"code":400,"message":"max_tokens","type":"invalid_request_error"}}'
        await call.send(stub.response(error, b"400 Bad Request"))
    elif request.get("stream"):
        await call.send(stub.STREAM_HEAD)
        for word in ("one ", "two ", "three"):
            event = {
                "id": "1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "llama",
                "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
            }
            await call.send_event(json.dumps(event).encode())
        if request.get("max_tokens") != 3:
            await call.send_event(b"[DONE]")
            await call.send(b"0\r\n\r\n")
        call.writer.close()
    elif call.path == b"/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        body = {"object": "list", "data": data, "model": "llama", "usage": usage}
        await call.send(stub.response(json.dumps(body).encode()))
    else:
        await call.send(stub.response(json.dumps(_COMPLETION).encode()))


@contextlib.asynccontextmanager
async def _client(*, api_key: str = "key", **options):
    async with StubEngine(_engine) as engine, serving(SlotRouter(engine.endpoint), **options) as port:
        base_url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
            yield client


async def test_models_completions_streams_and_embeddings_work():
    async with _client(api_keys=("key",)) as client:
        assert [model.id async for model in client.models.list()] == ["llama"]
        assert (await client.models.retrieve("gpt-4o")).id == "llama"
        whole = await client.chat.completions.create(model="llama", messages=HELLO, max_tokens=8)
        assert whole.choices[0].message.content == "Hi."
        stream = await client.chat.completions.create(model="llama", messages=HELLO, stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]
        assert words == ["one ", "two ", "three"]
        vectors = await client.embeddings.create(model="llama", input="x", encoding_format="float")
        assert vectors.data[0].embedding == [0.5, 0.25]


async def test_faults_are_the_classes_that_the_client_knows():
    async with _client() as client:
        with pytest.raises(openai.NotFoundError, match="llama") as caught:
            await client.chat.completions.create(model="gpt-9", messages=HELLO)
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await client.chat.completions.create(model="llama", messages=HELLO, max_tokens=-7)
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-9")
    async with _client(api_key="wrong", api_keys=("right",)) as client:
        with pytest.raises(openai.AuthenticationError, match="wrong"):
            await client.chat.completions.create(model="llama", messages=HELLO)


async def test_a_stream_that_breaks_raises_instead_of_ending():
    async with _client() as client:
        stream = await client.chat.completions.create(
            model="llama", messages=HELLO, stream=True, max_tokens=3
        )
        words = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
        with pytest.raises(openai.APIError, match="closed the connection"):
            await anext(stream)
    assert words == ["one ", "two ", "three"]


async def test_a_body_over_the_limit_is_told_to_a_client_that_is_still_sending():
    async with _client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.embeddings.create(model="llama", input="x" * 34_000_000)
    assert caught.value.status_code == 413


async def test_a_wait_that_is_told_as_reasoning_is_read_by_the_client():
    timing = Timing(comment_s=0.02, progress_after_s=0.0)
    async with (
        StubEngine(_engine) as engine,
        serving(
            router := SlotRouter(engine.endpoint, slots=1),
            timing=timing,
            wait_progress=WaitProgress.REASONING,
        ) as port,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client,
    ):
        router.estimates["llama"] = WaitEstimate(1, 3.0, "the model to be loaded")
        held = router.try_lease("llama")
        thoughts, words = "", ""
        async for chunk in await client.chat.completions.create(model="llama", messages=HELLO, stream=True):
            delta = chunk.choices[0].delta
            thoughts += getattr(delta, "reasoning_content", None) or ""
            words += delta.content or ""
            held.release() if held in router.held else None
        assert thoughts == "Waiting, 1st in line, about 3.0 s (the model to be loaded).\n"
        assert words == "one two three"
        held = router.try_lease("llama")
        async with client.chat.completions.stream(model="llama", messages=HELLO) as stream:
            async for _ in stream:
                held.release() if held in router.held else None
            whole = await stream.get_final_completion()
        assert whole.choices[0].message.content == "one two three"
