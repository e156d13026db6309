"""Engines that die while they answer."""

import asyncio
import json

import pytest

from cotenant.domain.errors import EngineDied, ModelUnloaded
from cotenant.domain.exit_causes import Cause
from cotenant.gateway.http.limits import Timing
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine, chunk
from tests.support.waiting import until

ASK = {"model": "llama", "messages": [], "max_tokens": 8}
LONG = {"model": "llama", "messages": []}


class Replacing(SlotRouter):
    """Leases the dead engine until it has noticed its death, then a fresh one."""

    def __init__(self, dead, fresh, *, noticed=True):
        super().__init__(dead)
        self.fresh = fresh
        self.noticed = asyncio.Event()
        if noticed:
            self.noticed.set()

    async def seen_dead(self):
        await self.noticed.wait()
        self.endpoint = self.fresh


async def _close(call):
    call.writer.close()


async def _head_only(call):
    await call.send(stub.STREAM_HEAD)
    call.writer.close()


async def _half_a_stream(call):
    await call.send(stub.STREAM_HEAD)
    await call.send_event(b'{"choices":[{"index":0,"delta":{"content":"lost"},"finish_reason":null}]}')
    call.writer.close()


async def _whole_stream(call):
    await call.send(stub.STREAM_HEAD)
    last = b'{"choices":[{"index":0,"delta":{"content":"kept"},"finish_reason":"stop"}]}'
    await call.send_event(last)
    await call.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


@pytest.mark.parametrize("script", [_close, _head_only])
async def test_an_engine_that_dies_before_its_answer_is_replaced_once(script):
    async with (
        StubEngine(script) as dying,
        StubEngine() as fresh,
        serving(router := Replacing(dying.endpoint, fresh.endpoint)) as port,
    ):
        reply = await post(port, ASK)
    assert (reply.status, reply.body) == (200, stub.ANSWER)
    assert (len(dying.calls), len(fresh.calls)) == (1, 1)
    assert router.released == [False, False]


async def test_an_answer_that_is_put_together_is_begun_anew_when_its_engine_dies_within_it():
    async with (
        StubEngine(_half_a_stream) as dying,
        StubEngine(_whole_stream) as fresh,
        serving(Replacing(dying.endpoint, fresh.endpoint)) as port,
    ):
        reply = await post(port, LONG)
    assert reply.json()["choices"][0]["message"]["content"] == "kept"


async def test_a_stream_that_has_begun_is_not_begun_anew():
    async with (
        StubEngine(_half_a_stream) as dying,
        StubEngine(_whole_stream) as fresh,
        serving(Replacing(dying.endpoint, fresh.endpoint)) as port,
    ):
        reply = await post(port, {**LONG, "stream": True})
    assert b"lost" in reply.body
    assert (
        json.loads(reply.body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"]
        == "upstream_failed"
    )
    assert fresh.calls == []


DEATH = EngineDied("llama died: its GPU is out of memory", cause=Cause.GPU_MEMORY_RUNNING)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_an_engine_died_of_is_told_in_every_dialect(path, stream):
    async with StubEngine(_half_a_stream) as engine:
        router = SlotRouter(engine.endpoint)
        router.death = DEATH
        asked = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
        async with serving(router, timing=Timing(notice_s=0.05)) as port:
            reply = await post(port, asked, path)
    last = json.loads(reply.body.strip().split(b"\n")[-1].removeprefix(b"data: "))
    error = last["error"] if isinstance(last["error"], dict) else {"message": last["error"], **last}
    assert error["cause"] == "gpu_memory_running"
    assert "out of memory" in error["message"]
    assert not router.held


async def test_a_second_engine_that_dies_ends_it():
    async with (
        StubEngine(_close) as dying,
        StubEngine(_close) as second,
        serving(router := Replacing(dying.endpoint, second.endpoint)) as port,
    ):
        reply = await post(port, ASK)
    assert (reply.status, reply.error["code"]) == (502, "upstream_failed")
    assert (len(dying.calls), len(second.calls)) == (1, 1)
    assert not router.held


async def test_a_dead_engine_is_not_asked_again_while_the_daemon_has_yet_to_notice():
    async with (
        StubEngine(_close) as dying,
        StubEngine() as fresh,
        serving(
            router := Replacing(dying.endpoint, fresh.endpoint, noticed=False), timing=Timing(notice_s=60)
        ) as port,
    ):
        reply = asyncio.create_task(post(port, ASK))
        await until(lambda: router.released == [False])
        assert not router.held, "a lease on a dead engine would keep its memory claimed"
        router.noticed.set()
        assert (await reply).status == 200
    assert (len(dying.calls), len(fresh.calls)) == (1, 1)
    assert router.released == [False, False]


async def test_an_engine_that_takes_no_connection_is_replaced_too():
    async with StubEngine() as gone:
        dead = gone.endpoint
    async with StubEngine() as fresh, serving(Replacing(dead, fresh.endpoint)) as port:
        reply = await post(port, ASK)
    assert reply.status == 200


async def test_a_client_that_leaves_before_the_daemon_has_noticed_is_not_begun_anew():
    timing = Timing(notice_s=60)
    async with (
        StubEngine(_close) as dying,
        StubEngine() as fresh,
        serving(router := Replacing(dying.endpoint, fresh.endpoint, noticed=False), timing=timing) as port,
    ):
        async with connected(port) as client:
            client.post(ASK)
            await until(lambda: router.released == [False])
            client.leave()
        # The gateway's timer for departures was set before this one and is shorter: it rings first. With the
        # answers that follow in the same loop, the departure has been seen.
        await asyncio.sleep(0.2)
        for _ in range(10):
            await fetch(port, "GET", "/health")
        router.noticed.set()
        async with asyncio.timeout(60):
            while b'status="left"' not in (await fetch(port, "GET", "/metrics")).body:
                await asyncio.sleep(0.01)
        assert fresh.calls == []
        assert len(router.terms) == 1


async def test_an_engine_that_lives_on_though_it_closed_is_asked_once_more():
    timing = Timing(notice_s=0.05)
    async with StubEngine(_close) as engine, serving(SlotRouter(engine.endpoint), timing=timing) as port:
        assert (await post(port, ASK)).status == 502
    assert len(engine.calls) == 2


@pytest.mark.parametrize("status", [b"400 Bad Request", b"500 Oops", b"503 Loading"])
async def test_an_engine_that_refuses_is_not_asked_twice(status):
    async def script(call):
        await call.send(stub.response(b'{"error": {"message": "no"}}', status))
        call.writer.close()

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, ASK)).status == int(status[:3])
    assert len(engine.calls) == 1


async def test_a_client_that_left_is_not_begun_anew():
    async with (
        StubEngine(stub.never_answer) as engine,
        serving(router := SlotRouter(engine.endpoint), timing=Timing()) as port,
        connected(port) as client,
    ):
        client.post(ASK)
        await engine.call()
        client.leave()
        await until(lambda: router.released == [True])
        assert len(engine.calls) == 1


async def test_what_an_operator_unloads_is_not_begun_anew():
    async with StubEngine(_close) as engine:
        router = SlotRouter(engine.endpoint)
        router.death = ModelUnloaded("llama was unloaded before the answer was complete")
        async with serving(router) as port:
            reply = await post(port, ASK)
    assert (reply.status, reply.error["code"]) == (503, "model_unloaded")
    assert len(engine.calls) == 1
