"""Bodies that cost much: how many values they hold, and how much memory all of them take."""

import asyncio
import contextlib
import json
import tracemalloc

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import RequestTooLarge
from cotenant.domain.units import KIB, MIB
from cotenant.gateway.http.limits import BodyMemory, Limits, check_values
from tests.gateway.harness import CHAT, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

NOWHERE = Endpoint("127.0.0.1", 1)
HALF = 300 * KIB


def bomb(unit: str, count: int = 600_000) -> bytes:
    return ('{"model":"llama","x":[' + ",".join([unit] * count) + "]}").encode()


@pytest.mark.parametrize("unit", ["[]", "{}", "1", '""', "1e9", '"a,b"', r'"\\"', r'"\""', '{"a":1}'])
def test_a_body_of_very_many_values_is_refused(unit: str):
    with pytest.raises(RequestTooLarge, match="more than 500,000 values"):
        check_values(bomb(unit))
    check_values(bomb(unit, 200_000))


@pytest.mark.parametrize("text", ["a[1], b{2}, ", '\\", "[,{', "\\\\", "\\", '"', "é,"])
def test_commas_and_brackets_in_texts_are_no_values(text: str):
    check_values(json.dumps({"messages": [{"content": text * 1_000_000}]}, ensure_ascii=False).encode())


def test_a_long_list_of_tokens_may_be_embedded():
    check_values(json.dumps({"input": [list(range(8192))] * 36}).encode())


@pytest.mark.parametrize("number", ["0." + "1" * MIB, "7" * 4300, "1e" + "9" * 400, "-" + "0" * 5000])
def test_numbers_that_take_long_to_parse_are_refused_but_not_in_texts(number: str):
    filled = [number] * (MIB // len(number) + 1)
    with pytest.raises(RequestTooLarge, match="digits"):
        check_values(f"[{','.join(filled)}]".encode())
    check_values(json.dumps(filled).encode())


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/api/chat"])
async def test_a_body_that_would_stop_the_event_loop_is_never_parsed(path: str):
    body = bomb("[]", 9_000_000)
    async with serving(SlotRouter(NOWHERE)) as port:
        tracemalloc.start()
        try:
            reply = await fetch(port, "POST", path, body)
            # The text itself a few times, but not its nine million lists.
            assert tracemalloc.get_traced_memory()[1] < 8 * len(body)
        finally:
            tracemalloc.stop()
    assert reply.status == 413
    assert b"more than 500,000 values" in reply.body


async def test_unfinished_bodies_take_no_more_memory_than_all_bodies_may():
    memory = BodyMemory(most_bytes=4 * HALF)
    async with (
        contextlib.AsyncExitStack() as stack,
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), limits=Limits(memory=memory)) as port,
    ):
        for _ in range(3):
            client = await stack.enter_async_context(connected(port))
            client.send("POST", CHAT, bytes(HALF), {"Content-Length": str(MIB)})
        await until(lambda: memory.held_bytes == 3 * HALF)
        refused = await fetch(port, "POST", CHAT, json.dumps({"model": "llama", "x": "a" * MIB}).encode())
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"] == "1"
        # Small requests go on as ever.
        assert (await post(port, {"model": "llama"})).status == 200
        await stack.aclose()
        await until(lambda: memory.held_bytes == 0)
        assert (await post(port, {"model": "llama", "x": "a" * MIB})).status == 200
    assert memory.held_bytes == 0


async def test_bodies_of_requests_that_wait_count_until_their_requests_end():
    memory = BodyMemory(most_bytes=2 * MIB)
    large = {"model": "llama", "x": "a" * (MIB + HALF)}
    async with (
        StubEngine() as engine,
        serving(router := SlotRouter(engine.endpoint, slots=0), limits=Limits(memory=memory)) as port,
    ):
        waiting = asyncio.ensure_future(post(port, large))
        await until(lambda: router.waiting)
        assert (await post(port, large)).status == 429
        waiting.cancel()
        await until(lambda: memory.held_bytes == 0)


async def test_a_body_that_is_changed_for_the_engine_is_released_by_the_length_that_was_held():
    memory = BodyMemory()
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), limits=Limits(memory=memory)) as port,
    ):
        half_a_pair = json.dumps({"model": "llama", "messages": [{"content": "\ud800" * HALF}]})
        assert (await fetch(port, "POST", CHAT, half_a_pair.encode())).status == 200
        # The response is sent before its request is over.
        await until(lambda: memory.held_bytes == 0)
        assert (await post(port, {"model": "gpt-4o", "x": "a" * HALF})).status == 200
        await until(lambda: memory.held_bytes == 0)
