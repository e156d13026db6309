"""Many at once, and much at once."""

import asyncio
import tracemalloc

import pytest

from cotenant.domain.units import MIB
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine, chunk
from tests.support.waiting import until

ASK = {"model": "llama"}


@pytest.mark.slow
async def test_a_thousand_requests_at_once_are_all_answered():
    async with StubEngine() as engine, serving(router := SlotRouter(engine.endpoint, slots=64)) as port:
        async with asyncio.timeout(60):
            replies = await asyncio.gather(*(post(port, {**ASK, "n": n}) for n in range(1000)))
    assert {(reply.status, reply.body) for reply in replies} == {(200, stub.ANSWER)}
    assert router.most_held <= 64
    assert router.released == [False] * 1000
    assert engine.connections <= 64


@pytest.mark.slow
async def test_a_thousand_streams_at_once_are_whole():
    async def script(call):
        await call.send(stub.STREAM_HEAD)
        for number in range(5):
            await call.send_event(b"%d" % number)
            await asyncio.sleep(0.01)
        await call.send(b"0\r\n\r\n")

    async with (
        StubEngine(script) as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1000)) as port,
    ):
        async with asyncio.timeout(60):
            replies = await asyncio.gather(*(post(port, {**ASK, "stream": True}) for _ in range(1000)))
    whole = b"".join(b"data: %d\n\n" % number for number in range(5))
    assert {reply.body for reply in replies} == {whole}
    assert router.released == [False] * 1000


@pytest.mark.slow
async def test_a_slow_reader_slows_the_engine_down_and_fills_no_memory():
    total, piece = 64 * MIB, chunk(b"x" * 65_536)
    sent = 0

    async def script(call):
        nonlocal sent
        await call.send(stub.STREAM_HEAD)
        for _ in range(total // 65_536):
            await call.send(piece)
            sent += 65_536
        await call.send(b"0\r\n\r\n")

    async with (
        StubEngine(script) as engine,
        serving(router := SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        tracemalloc.start()
        client.writer.transport.pause_reading()
        client.post({**ASK, "stream": True})
        await until(lambda: sent > 0)
        for _ in range(500):  # Everything here runs in one event loop: the stream has as many turns as these.
            assert (await fetch(port, "GET", "/health")).status == 200
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        # Kernel buffers of two loopback connections hold a few MiB each; the gateway's own share is small.
        assert sent < total / 2
        assert held < total / 16
        client.writer.transport.resume_reading()
        received = 0
        await client.head()
        while data := await client.chunk():
            received += len(data)
        assert received == total
        assert router.released == [False]
