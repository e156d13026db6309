"""How connections to engines are kept and given up."""

import asyncio

import pytest

from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.http.limits import Timing
from cotenant.gateway.inference.engine_connections import Pool
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

ASK = {"model": "llama"}
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


async def _exchange(pool: Pool, engine: StubEngine) -> bool:
    """Make one request; tell whether its connection was a pooled one."""
    connection = pool.idle(engine.endpoint)
    pooled = connection is not None
    connection = connection or await pool.connect(engine.endpoint)
    connection.begin(HEAD, b"")
    while not connection.ended:
        await connection.more()
    assert connection.take() == stub.ANSWER
    pool.give_back(connection)
    return pooled


async def test_a_connection_serves_one_request_after_another():
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        for _ in range(5):
            assert (await post(port, ASK)).status == 200
    assert engine.connections == 1


async def test_as_many_connections_as_requests_at_once_and_no_more():
    together = asyncio.Barrier(4)

    async def script(call):
        await together.wait()
        await stub.answer(call)

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        for _ in range(3):
            await asyncio.gather(*(post(port, ASK) for _ in range(4)))
    assert engine.connections == 4


async def test_a_connection_that_the_engine_closed_meanwhile_leaves_the_pool():
    pool = Pool()
    async with StubEngine() as engine:
        await _exchange(pool, engine)
        engine.calls[0].writer.close()
        await until(lambda: not pool._idle)
        assert not await _exchange(pool, engine)
        pool.close()


async def test_a_request_that_meets_a_closing_connection_is_sent_again_on_a_fresh_one():
    async def script(call):
        if call.connection == 0 and len(engine.calls) == 2:
            call.writer.close()  # without a byte, as after a keep-alive limit
        else:
            await stub.answer(call)

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        for _ in range(3):
            assert (await post(port, ASK)).status == 200
    assert [call.connection for call in engine.calls] == [0, 0, 1, 1]
    assert router.released == [False] * 3


async def test_a_stale_connection_and_a_lost_engine_each_cost_one_more_try():
    async def script(call):
        if len(engine.calls) == 1:
            await stub.answer(call)
        else:
            call.writer.close()

    timing = Timing(notice_s=0)
    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint), timing=timing) as port:
        assert (await post(port, ASK)).status == 200
        assert (await post(port, ASK)).status == 502
    assert len(engine.calls) == 4


async def test_on_a_machine_that_is_silent_a_stale_connection_is_not_made_anew():
    async def script(call):
        if len(engine.calls) in (1, 3):
            await stub.answer(call)
        else:
            router.missed.set()
            call.writer.close()

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        assert (await post(port, ASK)).status == 200
        assert (await post(port, ASK)).status == 200
    assert len(engine.calls) == 3
    assert router.released == [False] * 3, "it was asked again under a lease of its own"


async def test_a_connection_that_breaks_within_a_head_was_not_stale_but_its_engine_is_lost():
    async def script(call):
        if len(engine.calls) == 1:
            await stub.answer(call)
        else:
            await call.send(b"HTTP/1.1 200")
            call.writer.close()

    timing = Timing(notice_s=0)
    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint), timing=timing) as port:
        assert (await post(port, ASK)).status == 200
        assert (await post(port, ASK)).status == 502
    assert len(engine.calls) == 3


async def test_streams_that_end_by_closing_do_no_harm():
    async with (
        StubEngine(stub.stream_then_close) as engine,
        serving(router := SlotRouter(engine.endpoint)) as port,
    ):
        for _ in range(20):
            reply = await post(port, {**ASK, "stream": True})
            assert reply.body.endswith(b"data: [DONE]\n\n")
            assert b"error" not in reply.body
    assert router.released == [False] * 20


async def test_a_response_that_nobody_asked_for_closes_the_connection():
    pool = Pool()
    async with StubEngine() as engine:
        await _exchange(pool, engine)
        await engine.calls[0].send(stub.response(b"stolen"))
        await until(lambda: not pool._idle)
        assert not await _exchange(pool, engine)
        pool.close()


async def test_bytes_after_the_end_of_a_response_do_not_reach_the_next():
    async def script(call):
        await call.send(stub.response(stub.ANSWER) + stub.response(b"smuggled"))

    pool = Pool()
    async with StubEngine(script) as engine:
        await _exchange(pool, engine)
        assert not await _exchange(pool, engine)
        pool.close()


async def test_idle_connections_are_bounded_in_number_and_age():
    few, young = Pool(max_idle=2), Pool(max_idle_age_s=0.0)
    async with StubEngine() as engine:
        made = [await few.connect(engine.endpoint) for _ in range(4)]
        for connection in made:
            connection.begin(HEAD, b"")
        for connection in made:
            while not connection.ended:
                await connection.more()
            few.give_back(connection)
        assert len(few._idle[engine.endpoint]) == 2
        few.close()
        await _exchange(young, engine)
        await asyncio.sleep(0.002)
        assert not await _exchange(young, engine)
        young.close()


async def test_a_connection_cut_off_wakes_its_reader_and_says_that_work_was_left():
    async with StubEngine(stub.never_answer) as engine:
        connection = await Pool().connect(engine.endpoint)
        connection.begin(HEAD, b"")
        call = await engine.call()
        asyncio.get_running_loop().call_soon(connection.abort)
        await connection.more()
        with pytest.raises(UpstreamFailed, match="cut off"):
            await connection.more()
        assert connection.cut
        await asyncio.wait_for(call.closed.wait(), 60)
