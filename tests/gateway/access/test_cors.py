"""Pages of other origins: which may ask models, and that none may act for who is signed in."""

import json

import pytest

from cotenant.gateway.inference.dialects import TARGETS
from cotenant.gateway.ollama.api import READING
from tests.gateway.harness import SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine

PAGE = "https://chat.example.com"
CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hi"}]}
ASKS = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,x-any"}
KEY = "the-key"


async def ask(port: int, method: str, path: str, **headers: str):
    """Return the head of an answer, which is all that a browser needs."""
    async with connected(port) as client:
        client.send(method, path, None, {name.replace("_", "-"): value for name, value in headers.items()})
        return await client.reply(bodiless=True)


CLIENTS = (
    *TARGETS,
    *READING,
    "/v1/models",
    "/v1/models/llama",
    "/health",
    "/chat/completions",
    "//v1/models",
)
OTHERS = (
    "/",
    "/login",
    "/api/session",
    "/api/models",
    "/api/models/llama/unload",
    "/api/pull",
    "/api/delete",
    "/metrics",
    "/openapi.json",
    "/upstream/llama/props",
    "/nowhere",
)


async def test_a_preflight_is_answered_without_a_key_on_the_paths_of_clients_and_nowhere_else():
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), cors_origins=[PAGE], api_keys=[KEY]) as port,
    ):
        for path in CLIENTS:
            reply = await ask(port, "OPTIONS", path, Origin=PAGE, **ASKS)
            assert reply.status == 204, path
            assert reply.headers["access-control-allow-origin"] == PAGE
            assert reply.headers["access-control-allow-headers"] == "authorization,x-any"
            assert "POST" in reply.headers["access-control-allow-methods"]
            assert "access-control-allow-credentials" not in reply.headers
        assert not engine.calls
        for path in OTHERS:
            for method in ("OPTIONS", "GET"):
                reply = await ask(port, method, path, Origin=PAGE, Authorization=f"Bearer {KEY}", **ASKS)
                assert reply.status != 204, path
                assert not [name for name in reply.headers if name.startswith("access-control")], path


@pytest.mark.parametrize(
    ("origins", "page", "leave"),
    [
        ((), PAGE, None),
        ((PAGE,), PAGE, PAGE),
        ((PAGE.upper(),), PAGE, PAGE),
        ((PAGE,), PAGE + ":8443", None),
        ((PAGE,), "http://chat.example.com", None),
        ((PAGE,), "null", None),
        (("*",), PAGE, "*"),
        (("*",), "null", "*"),
    ],
)
async def test_a_page_reads_answers_and_errors_only_if_its_origin_is_allowed(origins, page, leave):
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), cors_origins=origins, api_keys=[KEY]) as port,
    ):
        for key, status in ((KEY, 200), ("wrong", 401)):
            reply = await post(port, CHAT, Origin=page, Authorization=f"Bearer {key}")
            assert reply.status == status
            assert reply.headers.get("access-control-allow-origin") == leave
            assert (reply.headers.get("vary") == "origin") == (leave == PAGE)
        preflight = await ask(port, "OPTIONS", "/v1/chat/completions", Origin=page, **ASKS)
        assert (preflight.status == 204) == (leave is not None)


async def test_without_keys_only_pages_of_an_allowed_origin_may_ask():
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint), cors_origins=[PAGE]) as port:
        assert (await post(port, CHAT, Origin=PAGE)).status == 200
        assert (await post(port, CHAT, Origin="https://other.example")).status == 403
        assert (await post(port, {}, "/api/models/llama/unload", Origin=PAGE)).status == 403


async def test_a_cookie_counts_for_the_consoles_own_pages_and_never_for_those_of_others():
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), cors_origins=["*"], api_keys=[KEY]) as port,
    ):
        own = f"http://localhost:{port}"
        body = json.dumps({"key": KEY}).encode()
        begun = await fetch(
            port, "POST", "/api/session", body, Content_Type="application/json", Host=f"localhost:{port}"
        )
        signed_in = {
            "Cookie": begun.headers["set-cookie"].partition(";")[0],
            "X_Cotenant_CSRF": begun.json()["csrf"],
            "Host": f"localhost:{port}",
        }
        assert (await post(port, CHAT, Origin=own, **signed_in)).status == 200
        assert (await post(port, CHAT, Origin=f"http://localhost:{port + 1}", **signed_in)).status == 401
        models = await fetch(port, "GET", "/v1/models", Origin=PAGE, **signed_in)
        assert models.status == 401


async def test_a_page_of_the_internet_may_reach_a_private_network_if_it_is_allowed():
    async with serving(SlotRouter(None), cors_origins=[PAGE]) as port:
        asks = {**ASKS, "Access_Control_Request_Private_Network": "true"}
        reply = await ask(port, "OPTIONS", "/v1/models", Origin=PAGE, **asks)
        assert reply.headers["access-control-allow-private-network"] == "true"
