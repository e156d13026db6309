"""A WebSocket below `/upstream/MODEL/` between a real client and a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineDied, ModelUnloaded
from cotenant.domain.exit_causes import Cause
from cotenant.domain.keys import ApiKey, KeyScope, key_digest
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.requests import ServedModel
from tests.gateway.harness import SlotRouter, serving
from tests.support.daemon.plain_gateway import plain_gateway
from tests.support.waiting import until

MODEL = ServedModel("m", ModelKind.ANY, created_at=1, recipe=Recipe(engine=EngineKind.COMMAND))


class Engine:
    """A server that says back what it hears."""

    def __init__(self) -> None:
        self.open: list[ServerConnection] = []

    async def talk(self, connection: ServerConnection) -> None:
        self.open.append(connection)
        if connection.request is not None and connection.request.path.startswith("/leave"):
            await connection.close(4000, "as asked")
        async for message in connection:
            await connection.send(message)


@contextlib.asynccontextmanager
async def engine_and_gateway(slots: int = 1, **options) -> AsyncIterator[tuple[Engine, SlotRouter, str]]:
    engine = Engine()

    def choose(_: ServerConnection, offered: list[str]) -> str | None:
        return next(iter(offered), None)

    async with serve(engine.talk, "127.0.0.1", 0, select_subprotocol=choose) as server:
        port = server.sockets[0].getsockname()[1]
        router = SlotRouter(Endpoint("127.0.0.1", port), slots=slots, models=(MODEL,))
        async with serving(router, **options) as own:
            yield engine, router, f"ws://127.0.0.1:{own}/upstream/m/socket?q=1"


async def test_texts_bytes_and_what_is_large_pass_both_ways_as_they_are():
    async with engine_and_gateway() as (engine, router, url):
        async with connect(url, subprotocols=["chat"], additional_headers={"X-Own": "1"}) as client:
            assert client.subprotocol == "chat"
            for message in ("é😀", b"\x00\xff", "x" * 900_000, bytes(900_000), ""):
                await client.send(message)
                assert await client.recv() == message
            await (await client.ping())
            assert len(router.held) == 1
            request = engine.open[0].request
            assert (request.path, request.headers["x-own"]) == ("/socket?q=1", "1")
        await until(lambda: not router.held)


@pytest.mark.slow
async def test_a_slow_reader_holds_the_engine_back():
    async with (
        engine_and_gateway() as (engine, _, url),
        connect(url, compression=None, max_queue=1) as client,
    ):
        await client.send("x")
        await client.recv()
        (server,) = engine.open
        sending = asyncio.create_task(_send_all(server, 64))
        await until(lambda: server.transport.get_write_buffer_size() > 0)
        for _ in range(64):
            assert len(await client.recv()) == 1_000_000
        await sending


async def _send_all(server: ServerConnection, count: int) -> None:
    for _ in range(count):
        await server.send(bytes(1_000_000))


async def test_it_opens_once_the_model_is_loaded():
    async with engine_and_gateway(slots=0) as (_, router, url):
        opening = asyncio.ensure_future(connect(url).__aenter__())
        await until(lambda: router.waiting)
        router.free += 1
        router.waiting[0].set_result(router._grant())
        client = await opening
        await client.send("hello")
        assert await client.recv() == "hello"
        await client.close()


async def test_a_client_that_leaves_before_frees_its_place_in_the_queue():
    async with engine_and_gateway(slots=0) as (_, router, url):
        opening = asyncio.ensure_future(connect(url).__aenter__())
        await until(lambda: router.waiting)
        opening.cancel()
        await until(lambda: not router.waiting)


async def closed(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        await client.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def test_the_engines_own_close_is_passed():
    async with engine_and_gateway() as (_, router, url):
        async with connect(url.replace("/socket", "/leave")) as client:
            assert await closed(client) == (4000, "as asked")
        await until(lambda: not router.held)


@pytest.mark.parametrize(
    ("death", "code"),
    [
        (ModelUnloaded("m was unloaded before the answer was complete"), 1001),
        (EngineDied("it ran out of memory", cause=Cause.UNKNOWN), 1011),
        (None, 1011),
    ],
)
async def test_an_engine_that_ends_closes_it_with_the_reason(death, code):
    async with engine_and_gateway() as (engine, router, url):
        async with connect(url) as client:
            await client.send("x")
            await client.recv()
            router.death = death
            engine.open[0].transport.abort()
            reason = death.message if death else "the engine closed the connection"
            assert await closed(client) == (code, reason)
        await until(lambda: not router.held)


async def test_a_daemon_that_stops_says_so():
    stop = asyncio.Event()
    async with engine_and_gateway(stop=stop, grace_s=10) as (_, _, url), connect(url) as client:
        await client.send("x")
        await client.recv()
        stop.set()
        assert await closed(client) == (1001, "the daemon is shutting down")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, HTTPStatus.FORBIDDEN),
        ({"Origin": "null"}, HTTPStatus.FORBIDDEN),
        ({"Sec-Fetch-Site": "cross-site"}, HTTPStatus.FORBIDDEN),
    ],
)
async def test_a_page_of_another_site_opens_none(headers, status):
    async with engine_and_gateway() as (engine, _, url):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url, additional_headers=headers).__aenter__()
        assert caught.value.response.status_code == status
        assert engine.open == []


async def test_a_key_needs_the_scope_operate_and_reaches_no_engine():
    keys = [ApiKey("ops", key_digest("o"), KeyScope.OPERATE), ApiKey("app", key_digest("a"), KeyScope.INFER)]
    async with engine_and_gateway(api_keys=keys) as (engine, _, url):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url, additional_headers={"Authorization": "Bearer a"}).__aenter__()
        assert caught.value.response.status_code == HTTPStatus.FORBIDDEN
        async with connect(url, additional_headers={"Authorization": "Bearer o"}) as client:
            await client.send("x")
            await client.recv()
            assert "authorization" not in engine.open[0].request.headers


@pytest.mark.slow
async def test_it_ends_with_its_key():
    own = ApiKey("ops", key_digest("o"), KeyScope.OPERATE)
    engine = Engine()
    async with serve(engine.talk, "127.0.0.1", 0) as server:
        router = SlotRouter(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1]), models=(MODEL,))
        gateway = plain_gateway(router, api_keys=[own])
        async with serving(router, gateway=gateway) as port:
            url, headers = f"ws://127.0.0.1:{port}/upstream/m/", {"Authorization": "Bearer o"}
            async with connect(url, additional_headers=headers) as client:
                await client.send("x")
                await client.recv()
                gateway.set_api_keys([ApiKey("other", key_digest("p"), KeyScope.OPERATE)])
                code, reason = await closed(client)
                assert (code, bool(reason)) == (1008, True)
            await until(lambda: not router.held)


async def test_elsewhere_an_offer_is_ignored_as_before():
    async with engine_and_gateway() as (_, _, url):
        address = url.replace("/upstream/m/socket?q=1", "/health")
        with pytest.raises(InvalidStatus) as caught:
            await connect(address).__aenter__()
        assert caught.value.response.status_code == HTTPStatus.OK


async def test_a_path_that_takes_no_websocket_is_an_error_that_names_the_answer():
    async def refuse(connection, request):
        return connection.respond(HTTPStatus.NOT_FOUND, "nothing here")

    async with serve(Engine().talk, "127.0.0.1", 0, process_request=refuse) as server:
        port = server.sockets[0].getsockname()[1]
        router = SlotRouter(Endpoint("127.0.0.1", port), models=(MODEL,))
        async with serving(router) as own:
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"ws://127.0.0.1:{own}/upstream/m/none").__aenter__()
    assert caught.value.response.status_code == HTTPStatus.BAD_GATEWAY
    assert b"404 Not Found" in caught.value.response.body
    assert not router.held
