"""Models of other servers: addresses as providers document them, and what their health path may answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.errors import EngineLoadFailed
from cotenant.engines.remote.engine import RemoteEngine
from tests.gateway import stub
from tests.gateway.harness import CHAT, SlotRouter, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("address", "base", "target"),
    [
        ("http://a", "http://a:80", "/v1/chat/completions"),
        ("https://a/v1/", "https://a:443", "/v1/chat/completions"),
        ("http://a:1/team", "http://a:1/team", "/team/v1/chat/completions"),
        ("http://a/team/v1", "http://a:80/team", "/team/v1/chat/completions"),
        ("http://a/v1beta/openai", "http://a:80/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("http://a/api/paas/v4/", "http://a:80/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("http://a/v1/id/gateway", "http://a:80/v1/id/gateway", "/v1/id/gateway/chat/completions"),
        ("http://a/v1?api-version=x", "http://a:80", "/v1/chat/completions?api-version=x"),
        ("http://a/v1/chat/completions", "http://a:80", "/v1/chat/completions"),
        ("http://a/chat/completions/?v=1", "http://a:80", "/chat/completions?v=1"),
        ("http://a/v1/models", "http://a:80", "/v1/chat/completions"),
        ("http://a/models/v1", "http://a:80/models", "/models/v1/chat/completions"),
        ("http://[::1]:9/vault", "http://[::1]:9/vault", "/vault/v1/chat/completions"),
    ],
)
def test_an_address_is_the_base_url_that_providers_document(address, base, target):
    endpoint = Endpoint.at(urlsplit(address))
    assert (endpoint.url, endpoint.target(CHAT)) == (base, target)
    assert endpoint.target("/health?x=1").count("?") == 1


@contextlib.asynccontextmanager
async def answering(head: bytes) -> AsyncIterator[tuple[RemoteEngine, list[bytes]]]:
    """A remote model whose server answers every request with `head`; and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 " + head + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        address = Endpoint("127.0.0.1", port, prefix="/v4", version="", query="a=b")
        options = EngineOptions(health_path=EngineKind.REMOTE.traits.health_path)
        engine = RemoteEngine("far", address, options, 60.0)
        try:
            yield engine, asked
        finally:
            await engine.stop(0)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"301 Moved\r\nLocation: https://new.example/v4/models", "https://new.example/v4/models"),
        (b"404 Not Found", "404 at /v4/models"),
        (b"405 Not Allowed", "405 at /v4/models"),
        (b"501 Not Implemented", "501 at /v4/models"),
    ],
)
async def test_a_load_fails_at_once_where_waiting_does_not_help(head, told):
    async with answering(head) as (engine, _):
        with pytest.raises(EngineLoadFailed, match=told) as caught:
            await asyncio.wait_for(engine.wait_ready(3600), 60)
    assert "address" in caught.value.hint


async def test_the_health_path_is_asked_at_the_base_with_the_query():
    async with answering(b"200 OK") as (engine, asked):
        await asyncio.wait_for(engine.wait_ready(60), 60)
    assert asked[0].startswith(b"GET /v4/models?a=b HTTP/1.1\r\n")


async def test_a_redirect_of_a_request_is_the_engines_fault_and_not_the_clients_answer():
    async def move(call):
        await call.send(stub.response(b"", b"301 Moved Permanently\r\nLocation: http://elsewhere.example/"))

    async with StubEngine(move) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, {"model": "llama", "max_tokens": 2})
    assert reply.status == 502
    assert "elsewhere.example" in reply.error["message"]
    assert "location" not in reply.headers


async def test_what_it_last_answered_is_known_while_it_is_waited_for():
    async with answering(b"500 Oops") as (engine, asked):
        waiting = asyncio.create_task(engine.wait_ready(3600))
        assert engine.problem is None
        await until(lambda: len(asked) > 1)
        assert engine.problem == "it answers 500 at /v4/models?a=b"
        waiting.cancel()
        await asyncio.wait([waiting])
