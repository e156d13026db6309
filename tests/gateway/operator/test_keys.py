"""Keys over the API: their rights and use, and keys that are made and revoked."""

from cotenant.asgi import encode_json
from cotenant.domain.keys import ApiKey, KeyScope, KeyUse, key_digest
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_gateway import PlainKeys

CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hi"}]}
BOSS = ApiKey("boss", key_digest("boss"), KeyScope.ADMIN)
APP = ApiKey("app", key_digest("app"), models=("llama",), requests_at_once=2, expires_at=4e9)
ANSWER = {"object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
AS_BOSS = {"Authorization": "Bearer boss"}


async def count(call: stub.Call) -> None:
    await call.send(stub.response(encode_json(ANSWER)))


async def test_the_use_of_each_key_is_told_with_its_rights_and_never_its_hash():
    book = PlainKeys(BOSS, APP)
    async with (
        StubEngine(count) as engine,
        serving(SlotRouter(engine.endpoint), api_keys=[BOSS, APP], keys=book) as port,
    ):
        for _ in range(2):
            assert (await post(port, CHAT, Authorization="Bearer app")).status == 200
        reply = await fetch(port, "GET", "/api/keys", **AS_BOSS)
        again = await fetch(port, "GET", "/api/keys", **AS_BOSS)
    boss, app = reply.json()["keys"]
    used = {"requests": 2, "prompt_tokens": 14, "completion_tokens": 6, "wait_s": app["total"]["wait_s"]}
    assert app == {
        "name": "app",
        "scope": "infer",
        "models": ["llama"],
        "expires_at": 4e9,
        "requests_at_once": 2,
        "tokens_per_minute": None,
        "priority": None,
        "origin": "stored",
        "in_flight": 0,
        "today": used,
        "total": used,
    }
    assert boss["total"]["requests"] == 0
    assert again.json() == reply.json(), "what is recorded is not recorded again"
    assert all(text not in reply.body for text in (APP.digest.hex().encode(), b"digest"))


async def test_what_was_used_last_is_recorded_when_the_gateway_closes_in_one_record_a_key():
    class Counted(PlainKeys):
        records = 0

        def record(self, name: str, use: KeyUse) -> None:
            self.records += 1
            super().record(name, use)

    book = Counted(APP)
    async with (
        StubEngine(count) as engine,
        serving(SlotRouter(engine.endpoint), api_keys=[APP], keys=book) as port,
    ):
        for _ in range(5):
            await post(port, CHAT, Authorization="Bearer app")
        await post(port, {**CHAT, "model": "nobody"}, Authorization="Bearer app")
        assert book.records == 0
    assert book.records == 1
    assert (book.used["app"].requests, book.used["app"].tokens) == (5, 50)


async def test_a_key_is_made_and_revoked():
    book = PlainKeys(BOSS)
    async with serving(SlotRouter(None), api_keys=[BOSS], keys=book) as port:
        made = await post(port, {"name": "new", "scope": "operate"}, "/api/keys", **AS_BOSS)
        assert made.json() == {"name": "new", "key": "text of new"}
        gone = await fetch(port, "DELETE", "/api/keys/new", b"", **AS_BOSS)
        assert [each["name"] for each in gone.json()["keys"]] == ["boss"]
        unknown = await fetch(port, "DELETE", "/api/keys/new", b"", **AS_BOSS)
        assert (unknown.status, unknown.error["code"]) == (404, "unknown_key")
        for body in ({}, {"name": "x", "scope": "root"}, {"name": "x", "digest": "00"}, {"name": 1}):
            refused = await post(port, body, "/api/keys", **AS_BOSS)
            assert refused.status == 422, body
