"""What a key may do: scopes, models, expiry, priority."""

import json

import pytest

from cotenant.clock import ManualClock
from cotenant.domain.decisions import ModelStatus
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import Unauthorized
from cotenant.domain.keys import ApiKey, KeyScope, key_digest
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.access.access_control import AccessControl
from tests.gateway.harness import MODEL, SlotRouter, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.daemon.plain_service_operator import PlainServices

NOWHERE = Endpoint("127.0.0.1", 1)
OTHER = ServedModel("other", ModelKind.TEXT, created_at=2, aliases=("gpt-9",))
CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hi"}]}
OPEN = {
    ("get", "/health"),
    ("get", "/api/session"),
    ("post", "/api/session"),
    ("post", "/api/session/end"),
    ("get", "/v1/models"),
    ("get", "/v1/audio/models"),
    ("get", "/v1/models/{name}"),
    ("get", "/openapi.json"),
}
"""Every other route is an operator's."""
ADMINS = {
    ("get", "/api/keys"),
    ("post", "/api/keys"),
    ("delete", "/api/keys/{name}"),
    ("post", "/api/nodes/{name}/engines/install"),
    ("post", "/api/nodes/{name}/pull"),
    ("post", "/api/reload"),
    ("put", "/api/system/gpu-config"),
    ("post", "/api/system/gpu-config/apply"),
    ("post", "/api/system/gpu-config/rollback"),
    ("post", "/api/system/gpu-config/detect"),
}


def key(scope: KeyScope = KeyScope.INFER, **rights) -> ApiKey:
    """A key whose text is its scope."""
    return ApiKey(f"for-{scope}", key_digest(scope), scope, **rights)


KEYS = tuple(map(key, KeyScope))


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def daemon(*keys: ApiKey, endpoint: Endpoint = NOWHERE, router: SlotRouter | None = None):
    router = router or SlotRouter(endpoint, models=(MODEL, OTHER))
    operator = PlainOperator(ModelStatus("llama", "ready"), ModelStatus("other", "cold"))
    return serving(router, operator, services=PlainServices(), api_keys=keys or KEYS)


async def operations(port: int) -> dict[tuple[str, str], dict]:
    document = (await fetch(port, "GET", "/openapi.json", **bearer("infer"))).json()
    return {
        (method, path): it for path, methods in document["paths"].items() for method, it in methods.items()
    }


async def test_a_key_that_may_infer_is_refused_on_every_route_of_operators():
    async with daemon() as port:
        routes = await operations(port)
        assert set(routes) >= OPEN
        refused = set()
        for method, template in routes:
            path = template.replace("{name}", "llama")
            for verb in (method.upper(), *(("HEAD",) if method == "get" else ())):
                reply = await fetch(port, verb, path, b"" if verb != "HEAD" else None, **bearer("infer"))
                if reply.status == 403:
                    refused.add((method, template))
                    assert verb == "HEAD" or reply.error["code"] == "forbidden"
    assert refused == set(routes) - OPEN


async def test_the_document_says_which_scope_each_route_needs_and_the_daemon_does_as_it_says():
    async with daemon() as port:
        routes = await operations(port)
        needed = {at: it["security"][0]["bearer"] for at, it in routes.items() if it["security"]}
        assert {at for at, scopes in needed.items() if scopes == ["admin"]} == ADMINS
        assert {at for at, scopes in needed.items() if scopes == ["operate"]} == set(routes) - OPEN - ADMINS
        for method, template in ADMINS:
            reply = await fetch(port, method.upper(), template, b"", **bearer("operate"))
            assert (reply.status, reply.error["code"]) == (403, "forbidden"), template
            assert "'for-operate' has the scope operate, and this needs admin" in reply.error["message"]
            assert (await fetch(port, method.upper(), template, b"", **bearer("admin"))).status != 403
        assert (await fetch(port, "POST", "/api/models/llama/unload", b"", **bearer("operate"))).status == 200


async def test_who_signs_in_has_the_rights_of_the_key():
    async with daemon() as port:
        begun = await post(port, {"key": "infer"}, "/api/session", Content_Type="application/json")
        assert begun.json()["scope"] == "infer"
        cookie = begun.headers["set-cookie"].partition(";")[0]
        own = {"Cookie": cookie, "X_Cotenant_CSRF": begun.json()["csrf"]}
        assert (await fetch(port, "GET", "/v1/models", **own)).status == 200
        for method, path in (
            ("GET", "/api/models"),
            ("POST", "/api/models/llama/unload"),
            ("GET", "/metrics"),
        ):
            reply = await fetch(port, method, path, b"", **own)
            assert (reply.status, reply.error["code"]) == (403, "forbidden"), path


async def test_in_ollamas_dialect_pulling_is_for_admins_and_unloading_for_operators():
    async with daemon() as port:
        for text, status in (("infer", 403), ("operate", 403), ("admin", 501)):
            pulled = await post(port, {"model": "hf.co/o/r"}, "/api/pull", **bearer(text))
            assert pulled.status == status
        for text, status in (("infer", 403), ("operate", 200)):
            unloaded = await post(port, {"model": "llama", "keep_alive": 0}, "/api/generate", **bearer(text))
            assert unloaded.status == status


@pytest.mark.parametrize(
    ("scope", "expected"), [(KeyScope.INFER, (3, None)), (KeyScope.OPERATE, (3, 0.0))], ids=str
)
async def test_a_key_bounds_the_priority_and_one_that_may_infer_does_not_say_how_long_models_stay(
    scope, expected
):
    async with StubEngine() as engine:
        router = SlotRouter(engine.endpoint, models=(MODEL, OTHER))
        async with daemon(key(scope, priority=3), router=router) as port:
            request = {**CHAT, "keep_alive": 0}
            assert (await post(port, request, **bearer(scope))).status == 200
            await post(port, request, X_Cotenant_Priority="9", **bearer(scope))
            await post(port, request, X_Cotenant_Priority="-2", **bearer(scope))
    assert [(each.priority, each.keep_alive_s) for each in router.terms] == [
        expected,
        expected,
        (-2, expected[1]),
    ]


@pytest.mark.parametrize("allowed", ["llama", "gpt-4o"], ids=["by its name", "by an alias"])
async def test_models_that_a_key_may_not_use_are_not_served_to_it(allowed):
    async with StubEngine() as engine, daemon(key(models=(allowed,)), endpoint=engine.endpoint) as port:
        own = bearer("infer")
        listed = (await fetch(port, "GET", "/v1/models", **own)).json()["data"]
        tags = (await fetch(port, "GET", "/api/tags", **own)).json()["models"]
        assert ([each["id"] for each in listed], [each["name"] for each in tags]) == (
            ["llama"],
            ["llama:latest"],
        )
        for name in ("llama", "gpt-4o", "llama:latest"):
            assert (await post(port, {**CHAT, "model": name}, **own)).status == 200, name
        for name in ("other", "gpt-9", "other:latest", "nothing"):
            reply = await post(port, {**CHAT, "model": name}, **own)
            assert (reply.status, reply.error["code"]) == (404, "model_not_found"), name
            assert "Served: llama." in reply.error["message"]
        assert (await fetch(port, "GET", "/v1/models/other", **own)).status == 404
        assert (await post(port, {"model": "other"}, "/api/show", **own)).status == 404
        assert (await post(port, {**CHAT, "model": "other"}, "/api/chat", **own)).status == 404
        assert (await post(port, {"model": "other", "input": "a"}, "/api/embed", **own)).status == 404


async def test_a_key_that_has_expired_is_void():
    now = [100.0]
    control = AccessControl([key(expires_at=200.0)], (), ManualClock(), lambda: now[0])
    scope = {"method": "GET", "headers": [(b"authorization", b"Bearer infer")], "client": ("127.0.0.1", 1)}
    found = control.check(scope, is_open=False)
    assert found is not None
    assert found.name == "for-infer"
    now[0] = 200.0
    with pytest.raises(Unauthorized, match="the API key 'for-infer' has expired"):
        control.check(scope, is_open=False)


async def test_a_session_ends_when_its_key_expires_or_has_expired():
    async with daemon(key(expires_at=1.0)) as port:
        body = json.dumps({"key": "infer"}).encode()
        reply = await fetch(port, "POST", "/api/session", body, Content_Type="application/json")
        assert (reply.status, reply.error["code"]) == (401, "unauthorized")
