"""`/upstream/MODEL/…`: passed as it is, to engines that are Cotenant's own."""

import json

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.keys import ApiKey, KeyScope, key_digest
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.requests import ServedModel
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, fetch, serving
from tests.gateway.stub import StubEngine


def of(kind: EngineKind, name: str = "m") -> ServedModel:
    return ServedModel(name, ModelKind.TEXT, created_at=1, recipe=Recipe(engine=kind))


async def echo(call: stub.Call) -> None:
    seen = {"method": call.method.decode(), "path": call.path.decode(), "body": call.body.decode("latin-1")}
    seen["type"] = call.headers.get(b"content-type", b"").decode()
    await call.send(stub.response(json.dumps(seen).encode(), b"418 Teapot", kind=b"text/x-own"))


async def ask(method, path, body=None, model=None, script=echo, **options):
    headers = options.pop("headers", {})
    async with StubEngine(script) as engine:
        router = SlotRouter(engine.endpoint, models=(model or of(EngineKind.COMMAND),))
        async with serving(router, **options) as port:
            reply = await fetch(port, method, path, body, **headers)
        assert not router.held
        return reply, engine.calls


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
async def test_any_method_path_and_body_reach_the_engine_as_they_are(method):
    body = bytes(range(256)) * 2000
    reply, _ = await ask(
        method, "/upstream/m/a//b%2Fc/?q=1&r=%20", body, headers={"Content-Type": "application/x-any"}
    )
    seen = reply.json()
    assert (reply.status, reply.headers["content-type"]) == (418, "text/x-own")
    assert (seen["method"], seen["path"]) == (method, "/a//b%2Fc/?q=1&r=%20")
    assert (seen["body"].encode("latin-1"), seen["type"]) == (body, "application/x-any")


async def test_a_name_with_a_slash_is_escaped_and_the_root_needs_no_slash():
    model = of(EngineKind.COMMAND, "org/model:1")
    for path in ("/upstream/org%2Fmodel:1", "/upstream/org%2Fmodel%3A1/"):
        reply, _ = await ask("GET", path, model=model)
        assert reply.json()["path"] == "/"


async def test_redirects_stay_below_the_model_and_pages_apart_from_the_console():
    async def redirect(call: stub.Call) -> None:
        await call.send(
            b"HTTP/1.1 302 Found\r\nLocation: /page\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
        )

    reply, _ = await ask("GET", "/upstream/m/", script=redirect)
    assert (reply.status, reply.headers["location"]) == (302, "/upstream/m/page")
    assert reply.headers["content-security-policy"].startswith("sandbox")
    assert "set-cookie" not in reply.headers


async def test_a_head_is_passed_as_a_head_and_ends_without_the_body_that_it_describes():
    async def head(call: stub.Call) -> None:
        await call.send(b"HTTP/1.1 206 Partial\r\nContent-Type: text/x-own\r\nContent-Length: 12345\r\n\r\n")

    async with StubEngine(head) as engine:
        router = SlotRouter(engine.endpoint, models=(of(EngineKind.COMMAND),))
        async with serving(router) as port, connected(port) as client:
            for _ in range(2):
                client.send("HEAD", "/upstream/m/page")
                reply = await client.reply(bodiless=True)
                assert (reply.status, reply.headers["content-type"]) == (206, "text/x-own")
                assert reply.headers["content-length"] == "12345"
            client.send("GET", "/health")
            assert (await client.reply()).status == 200
        assert not router.held
    assert [call.method for call in engine.calls] == [b"HEAD", b"HEAD"]


@pytest.mark.parametrize(
    ("kind", "path", "status"),
    [
        (EngineKind.REMOTE, "/v1/files", 501),
        (EngineKind.OLLAMA, "/api/delete", 501),
        (EngineKind.VLLM, "/collective_rpc", 501),
        (EngineKind.VLLM, "//sleep", 501),
        (EngineKind.VLLM, "/v1/score", 418),
        (EngineKind.LLAMA_CPP, "/slots", 418),
    ],
)
async def test_only_engines_of_ours_are_reached_and_none_behind_the_schedulers_back(kind, path, status):
    reply, calls = await ask("POST", f"/upstream/m{path}", b"{}", model=of(kind))
    assert reply.status == status
    assert bool(calls) == (status == 418)


async def test_who_may_only_infer_or_comes_from_another_site_is_refused():
    key = ApiKey("k", key_digest("secret"), KeyScope.INFER)
    options = {"api_keys": (key,), "headers": {"Authorization": "Bearer secret"}}
    reply, calls = await ask("GET", "/upstream/m/", **options)
    assert (reply.status, calls) == (403, [])
    reply, calls = await ask("GET", "/upstream/m/", headers={"Sec-Fetch-Site": "same-site"})
    assert (reply.status, calls) == (403, [])
    reply, calls = await ask("GET", "/upstream/nobody/")
    assert (reply.status, calls) == (404, [])
