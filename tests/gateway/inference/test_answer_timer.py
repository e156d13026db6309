"""Engines that are silent, or take too long, with a bound on both."""

import asyncio
import json

import pytest

from cotenant.domain.errors import EngineHung
from cotenant.domain.exit_causes import Cause
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

ASK = {"model": "llama", "messages": [], "max_tokens": 8}


async def _trickle(call):
    await call.send(stub.STREAM_HEAD)
    while not call.closed.is_set():
        await call.send_event(b'{"choices":[{"index":0,"delta":{"content":"a"}}]}')
        await asyncio.sleep(0.01)


def last_event(body: bytes) -> dict:
    return json.loads(body.strip().split(b"\n\n")[-1].removeprefix(b"data: "))


@pytest.mark.parametrize("script", [stub.never_answer, stub.stream_for_ever, _trickle])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
async def test_a_plain_answer_that_does_not_come_in_time_is_a_504(script, path):
    async with StubEngine(script) as engine:
        router = SlotRouter(engine.endpoint)
        router.silence_s = 0.2
        async with serving(router) as port:
            asked = {"model": "llama", "messages": [{"role": "user", "content": "x"}], "stream": False}
            reply = await post(port, asked, path)
            await (await engine.call()).closed.wait()
    assert reply.status == 504, reply.body
    assert "200 ms" in reply.body.decode()
    assert len(engine.calls) == 1
    assert router.released == [True]


async def test_a_request_may_bound_its_answer_itself():
    async with StubEngine(stub.never_answer) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, ASK, X_Cotenant_Timeout="0.2s")
    assert (reply.status, reply.error["code"]) == (504, "answer_timeout")


async def test_a_timeout_of_zero_is_for_the_wait_alone():
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, ASK, X_Cotenant_Timeout="0")).status == 200


async def test_a_stream_that_falls_silent_ends_with_an_error_event():
    async with StubEngine(stub.stream_for_ever) as engine:
        router = SlotRouter(engine.endpoint)
        router.silence_s = 0.2
        async with serving(router) as port:
            reply = await post(port, {**ASK, "stream": True})
    assert reply.status == 200
    assert last_event(reply.body)["error"]["code"] == "answer_timeout"


async def test_a_stream_that_goes_on_is_bounded_only_in_whole():
    async with StubEngine(_trickle) as engine:
        router = SlotRouter(engine.endpoint)
        router.answer_s = 0.5
        async with serving(router) as port:
            reply = await post(port, {**ASK, "stream": True})
    assert reply.body.count(b"delta") > 1
    assert "500 ms" in last_event(reply.body)["error"]["message"]


async def test_a_request_on_a_kept_connection_is_not_asked_again_after_its_time():
    async with StubEngine() as engine:
        router = SlotRouter(engine.endpoint)
        router.silence_s = 0.2
        async with serving(router) as port:
            assert (await post(port, ASK)).status == 200
            engine.script = stub.never_answer
            assert (await post(port, ASK)).status == 504
    assert len(engine.calls) == 2
    assert engine.connections == 1


async def test_what_an_engine_hung_of_is_told_and_not_asked_again():
    async def die(call):
        call.writer.close()

    async with StubEngine(die) as engine:
        router = SlotRouter(engine.endpoint)
        router.death = EngineHung("llama was killed because it hung", cause=Cause.HUNG)
        async with serving(router) as port:
            reply = await post(port, ASK)
    assert (reply.status, reply.error["code"], reply.error["cause"]) == (504, "engine_hung", "hung")
    assert len(engine.calls) == 1


async def test_a_client_that_reads_late_is_no_silence_of_the_engine():
    whole = asyncio.Event()

    async def much(call):
        await call.send(stub.STREAM_HEAD)
        for _ in range(800):
            await call.send_event(b'"%b"' % (b"x" * 16384))
        await call.send(b"0\r\n\r\n")
        whole.set()

    async with StubEngine(much) as engine:
        router = SlotRouter(engine.endpoint)
        router.silence_s = 0.2
        async with serving(router) as port, connected(port) as client:
            client.post({**ASK, "stream": True})
            await client.head()
            client.writer.transport.pause_reading()
            asked_at = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > asked_at + 1)
            client.writer.transport.resume_reading()
            body = await client.reply_body()
    assert b"error" not in body
    assert whole.is_set()
