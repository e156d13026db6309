"""What happens when a client leaves."""

import asyncio

import pytest

from cotenant.gateway.inference.engine_connections import Pool
from tests.gateway import stub
from tests.gateway.harness import CHAT, SlotRouter, connected, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_gateway import plain_gateway
from tests.support.waiting import until

ASK = {"model": "llama", "messages": []}


@pytest.mark.parametrize("after_s", [0.0, 0.2])
async def test_a_client_that_leaves_before_the_answer_stops_the_engine(after_s):
    async with (
        StubEngine(stub.never_answer) as engine,
        serving(router := SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        client.post(ASK)
        call = await engine.call()
        await asyncio.sleep(after_s)  # before and after the gateway begins to listen for departures
        client.leave()
        await asyncio.wait_for(call.closed.wait(), 60)
        await until(lambda: router.released == [True])


async def test_a_client_that_leaves_in_the_middle_of_a_stream_stops_the_engine():
    async with (
        StubEngine(stub.stream_for_ever) as engine,
        serving(router := SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        client.post({**ASK, "stream": True})
        await client.head()
        await client.chunk()
        client.leave()
        await asyncio.wait_for((await engine.call()).closed.wait(), 60)
        await until(lambda: router.released == [True])


async def test_a_client_that_leaves_while_it_waits_gives_up_its_place():
    async with (
        StubEngine(stub.never_answer) as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1)) as port,
        connected(port) as holder,
        connected(port) as waiter,
    ):
        holder.post(ASK)
        await engine.call()
        waiter.post(ASK)
        await until(lambda: len(router.waiting) == 1)
        waiter.leave()
        await until(lambda: not router.waiting)
        assert len(engine.calls) == 1
        assert router.released == []


async def test_a_client_that_leaves_before_its_body_is_whole_takes_no_slot():
    async with StubEngine() as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        async with connected(port) as client:
            client.send("POST", CHAT, b"{", {"Content-Length": "100"})
            await client.writer.drain()
        assert (await post(port, ASK)).status == 200
    assert len(engine.calls) == 1
    assert router.released == [False]


async def test_a_slot_granted_to_a_client_that_has_just_left_comes_back_unused():
    async with (
        StubEngine(stub.never_answer) as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1)) as port,
        connected(port) as holder,
        connected(port) as waiter,
    ):
        holder.post(ASK)
        await engine.call()
        waiter.post(ASK)
        await until(lambda: len(router.waiting) == 1)
        holder.leave()
        waiter.leave()
        await until(lambda: not router.held and not router.waiting)
    assert router.released[0] is True
    assert router.free == 1


async def test_a_client_that_has_its_answer_and_leaves_abandons_nothing():
    async with StubEngine() as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        for _ in range(20):
            assert (await post(port, ASK)).status == 200
    assert router.released == [False] * 20


class _ByHand:
    """The gateway called as a server would, so that two things can happen in one turn of the loop."""

    def __init__(self, router: SlotRouter) -> None:
        self.gateway = plain_gateway(router)
        self.sent: list[dict[str, object]] = []
        self.listening = asyncio.Event()
        self.departure = asyncio.get_running_loop().create_future()
        self._body_read = False
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        self.task = asyncio.ensure_future(self.gateway(scope, self._receive, self._send))

    async def _receive(self):
        if not self._body_read:
            self._body_read = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        self.listening.set()
        await self.departure
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)


async def _waiting_by_hand(router: SlotRouter) -> _ByHand:
    call = _ByHand(router)
    await until(lambda: len(router.waiting) == 1)
    await asyncio.wait_for(call.listening.wait(), 60)
    return call


@pytest.mark.parametrize("granted_first", [True, False])
async def test_a_slot_granted_in_the_turn_of_the_departure_comes_back_unused(granted_first):
    async with StubEngine() as engine:
        router = SlotRouter(engine.endpoint, slots=1)
        held = router.try_lease("llama")
        call = await _waiting_by_hand(router)
        if granted_first:
            held.release()
            call.departure.set_result(None)
        else:
            call.departure.set_result(None)
            held.release()
        await asyncio.wait_for(call.task, 60)
    assert (call.sent, engine.calls) == ([], [])
    assert (router.free, router.held, router.released) == (1, set(), [False, False])


async def test_a_slot_granted_in_the_turn_of_a_shutdown_comes_back_unused():
    async with StubEngine() as engine:
        router = SlotRouter(engine.endpoint, slots=1)
        held = router.try_lease("llama")
        call = await _waiting_by_hand(router)
        held.release()
        await asyncio.sleep(0)  # the grant has been made, and not yet delivered
        call.task.cancel()
        await asyncio.wait({call.task})
    assert call.task.cancelled()
    assert call.sent[0]["status"] == 503
    assert (router.free, router.held, router.released) == (1, set(), [False, False])


async def test_a_client_that_leaves_while_the_engine_is_being_reached_sends_nothing():
    reached = asyncio.Event()

    class SlowPool(Pool):
        async def connect(self, endpoint):
            connection = await super().connect(endpoint)
            await reached.wait()
            return connection

    async with StubEngine() as engine:
        call = _ByHand(router := SlotRouter(engine.endpoint))
        call.gateway._proxy.pool = SlowPool()
        await asyncio.wait_for(call.listening.wait(), 60)
        call.departure.set_result(None)
        await asyncio.sleep(0)
        reached.set()
        await asyncio.wait_for(call.task, 60)
    assert (call.sent, engine.calls) == ([], [])
    assert router.released == [False]
