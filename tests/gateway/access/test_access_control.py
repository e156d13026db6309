"""Who gets in: keys, sessions, and from where."""

import asyncio
import contextlib
import hashlib
import json
import logging

import pytest

from cotenant.clock import ManualClock
from cotenant.domain.decisions import Decision, DecisionKind, ModelStatus
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import NotOnHub
from cotenant.domain.hub import PullStep
from tests.gateway.harness import SlotRouter, connected, fetch, post, serving
from tests.support.daemon.plain_gateway import flat_keys, plain_gateway
from tests.support.daemon.plain_operator import PlainOperator

NOWHERE = Endpoint("127.0.0.1", 1)
KEY = "the-key"
UNLOAD = "/api/models/llama/unload"


def daemon(**options):
    return serving(SlotRouter(NOWHERE), PlainOperator(ModelStatus("llama", "ready")), **options)


async def sign_in(port, key=KEY, **headers):
    body = json.dumps({"key": key}).encode()
    return await fetch(port, "POST", "/api/session", body, Content_Type="application/json", **headers)


async def signed_in(port) -> tuple[str, str]:
    """Return the cookie and the token that goes with it."""
    reply = await sign_in(port)
    assert reply.status == 200
    return reply.headers["set-cookie"].partition(";")[0], reply.json()["csrf"]


async def test_a_host_that_anybody_may_point_here_is_refused_but_for_health():
    async with daemon() as port:
        for path in ("/api/models", "/v1/models", "/metrics", "/openapi.json", "/api/session"):
            reply = await fetch(port, "GET", path, Host="evil.example")
            assert (reply.status, reply.error["code"]) == (403, "untrusted_host"), path
        assert (await fetch(port, "GET", "/health", Host="evil.example")).status == 200


async def test_a_host_that_is_allowed_is_answered():
    async with daemon(hosts=("models.example",)) as port:
        assert (await fetch(port, "GET", "/api/models", Host="models.example:443")).status == 200


async def test_a_bearer_of_the_key_may_come_by_any_name_and_from_any_page():
    async with daemon(api_keys=(KEY,)) as port:
        reply = await fetch(
            port,
            "POST",
            UNLOAD,
            b"",
            Host="m.example",
            Origin="http://o.example",
            Authorization=f"Bearer {KEY}",
        )
    assert reply.status == 200


async def test_a_key_that_is_wrong_opens_nothing():
    async with daemon(api_keys=(KEY,)) as port:
        cookie, _ = await signed_in(port)
        reply = await fetch(port, "GET", "/api/models", Authorization="Bearer other", Cookie=cookie)
    assert reply.status == 401


@pytest.mark.parametrize("path", [UNLOAD, "/v1/chat/completions", "/api/reload"])
async def test_without_keys_a_page_of_another_site_orders_nothing(path):
    async with daemon() as port:
        reply = await fetch(port, "POST", path, b"{}", Origin="http://evil.example")
    assert (reply.status, reply.error["code"]) == (403, "foreign_page")


async def test_a_browser_signs_in_orders_with_its_token_and_signs_out():
    async with daemon(api_keys=(KEY,)) as port:
        cookie, csrf = await signed_in(port)
        own = {"Cookie": cookie, "Origin": "http://localhost"}
        assert (await fetch(port, "GET", "/api/models", Cookie=cookie)).status == 200
        told = (await fetch(port, "GET", "/api/session", Cookie=cookie)).json()
        assert told == {"needed": True, "signed_in": True, "csrf": csrf, "scope": "admin"}
        without = await fetch(port, "POST", UNLOAD, b"", **own)
        other = await fetch(port, "POST", UNLOAD, b"", **own, X_Cotenant_CSRF="x" + csrf)
        assert (without.status, without.error["code"], other.status) == (403, "foreign_page", 403)
        assert (await fetch(port, "POST", UNLOAD, b"", **own, X_Cotenant_CSRF=csrf)).status == 200
        ended = await fetch(port, "POST", "/api/session/end", b"", **own, X_Cotenant_CSRF=csrf)
        assert "Max-Age=0" in ended.headers["set-cookie"]
        assert (await fetch(port, "GET", "/api/models", Cookie=cookie)).status == 401


async def test_another_site_cannot_sign_a_browser_out():
    async with daemon(api_keys=(KEY,)) as port:
        cookie, _ = await signed_in(port)
        assert (await fetch(port, "POST", "/api/session/end", b"", Cookie=cookie)).status == 403
        assert (await fetch(port, "GET", "/api/models", Cookie=cookie)).status == 200


async def test_the_cookie_is_kept_from_scripts_from_other_sites_and_where_there_is_tls_from_plain_http():
    async with daemon(api_keys=(KEY,)) as port:
        plain = (await sign_in(port, Host="box:8080")).headers["set-cookie"]
        secure = (await sign_in(port, X_Forwarded_Proto="https")).headers["set-cookie"]
    assert plain.startswith("cotenant_session_8080=")
    assert "HttpOnly; SameSite=Strict" in plain
    assert "Secure" not in plain
    assert secure.endswith("; Secure")


async def test_a_wrong_key_is_refused_and_after_five_nobody_guesses_on():
    async with daemon(api_keys=(KEY,)) as port:
        for number in range(5):
            assert (await sign_in(port, f"guess {number}")).status == 401
        reply = await sign_in(port)
    assert (reply.status, reply.error["code"]) == (429, "too_many_attempts")
    assert 0 < int(reply.headers["retry-after"]) <= 60


@pytest.mark.parametrize("body", [b"", b"{}", b'{"key": ""}', b'{"key": 7}', b"[]", b"{"])
async def test_what_is_no_key_is_told_so(body):
    async with daemon(api_keys=(KEY,)) as port:
        reply = await fetch(port, "POST", "/api/session", body)
    assert reply.status in (400, 422)


async def test_without_keys_there_is_nothing_to_sign_in_to():
    async with daemon() as port:
        told = (await fetch(port, "GET", "/api/session")).json()
        assert told == {"needed": False, "signed_in": False, "csrf": None, "scope": None}
        reply = await sign_in(port)
    assert (reply.status, reply.json(), "set-cookie" in reply.headers) == (200, told, False)


async def test_wrong_keys_are_logged_one_line_for_many(caplog):
    clock = ManualClock()
    async with daemon(api_keys=[KEY], clock=clock) as port:
        for _ in range(3):
            reply = await fetch(port, "GET", "/v1/models", Authorization="Bearer guess-me")
            assert reply.status == 401
        clock.advance(11)
        assert (await sign_in(port, "guess-me")).status == 401
        await fetch(port, "GET", "/v1/models")
    lines = [record.message for record in caplog.records if "wrong API keys" in record.message]
    assert [line.partition("count=")[2] for line in lines] == [
        "1 last_from=127.0.0.1",
        "3 last_from=127.0.0.1",
    ]
    assert "guess-me" not in caplog.text


async def test_guesses_are_bounded_for_an_address_and_who_has_a_key_goes_on():
    clock = ManualClock()

    async def status(port, key):
        reply = await fetch(port, "GET", "/v1/models", Authorization=f"Bearer {key}")
        assert reply.status == 200 or reply.error["code"] in ("unauthorized", "too_many_attempts")
        assert (reply.status == 429) is ("retry-after" in reply.headers)
        return reply.status

    async with daemon(api_keys=[KEY, "another"], clock=clock) as port:
        assert await status(port, KEY) == 200
        assert {await status(port, f"guess {number}") for number in range(20)} == {401}
        assert {await status(port, f"guess {number}") for number in range(20, 25)} == {429}
        assert await status(port, KEY) == 200
        assert await status(port, "another") == 429
        assert (await sign_in(port)).status == 429
        clock.advance(60)
        assert await status(port, "another") == 200
        assert (await sign_in(port)).status == 200


async def test_each_order_is_logged_once_with_who_gave_it_and_reading_is_not(caplog):
    caplog.set_level(logging.INFO, "cotenant.gateway")
    by_key = f"from=127.0.0.1 key={hashlib.sha256(KEY.encode()).hexdigest()[:8]}"
    gateway = plain_gateway(
        SlotRouter(NOWHERE), PlainOperator(ModelStatus("llama", "ready")), puller=NoPuller(), api_keys=(KEY,)
    )
    async with serving(None, gateway=gateway) as port:
        cookie, csrf = await signed_in(port)
        key = {"Authorization": f"Bearer {KEY}"}
        await fetch(port, "POST", UNLOAD, b"", **key)
        await fetch(port, "POST", UNLOAD, b"", Authorization="Bearer wrong")
        await fetch(port, "POST", "/api/models/a%0Ab/pin", b"", **key)
        await fetch(port, "POST", "/api/reload", b"", Cookie=cookie, X_Cotenant_CSRF=csrf)
        await post(port, {"model": "hf.co/o/r", "stream": False}, "/api/pull", **key)
        await post(port, {"model": "llama", "keep_alive": 0}, "/api/generate", **key)
        await fetch(port, "GET", "/api/models", **key)
        await fetch(port, "POST", "/api/plan", b"{}", **key)
    orders = [record.message for record in caplog.records if by_key in record.message]
    assert orders == [
        f"signed in: {by_key}",
        f"order: POST '{UNLOAD}' {by_key}",
        f"order: POST '/api/models/a\\nb/pin' {by_key}",
        f"order: POST '/api/reload' {by_key}",
        f"order: pull 'hf.co/o/r' {by_key}",
        f"order: unload 'llama' {by_key}",
    ]
    assert KEY not in caplog.text


async def test_without_keys_an_order_is_logged_with_the_address_alone(caplog):
    caplog.set_level(logging.INFO, "cotenant.gateway")
    async with daemon() as port:
        await fetch(port, "POST", UNLOAD, b"", Authorization="Bearer whatever")
    assert f"order: POST '{UNLOAD}' from=127.0.0.1" in [record.message for record in caplog.records]


class NoPuller:
    """A hub where nothing is."""

    async def pull(self, name):
        raise NotOnHub(f"there is no {name}")
        yield


class EndlessPuller:
    """Its only pull begins and never ends; `ended` is set when nobody awaits it any more."""

    def __init__(self):
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def pull(self, name):
        try:
            yield PullStep("pulling manifest")
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def test_endless_answers_end_with_the_key_or_session_that_they_were_given_to(tmp_path):
    operator, puller = PlainOperator(ModelStatus("llama", "ready")), EndlessPuller()
    operator.logs["llama"] = tmp_path / "llama.log"
    operator.logs["llama"].write_text("one\n")
    gateway = plain_gateway(SlotRouter(NOWHERE), operator, puller=puller, api_keys=("old", "other"))
    async with serving(None, gateway=gateway) as port, contextlib.AsyncExitStack() as stack:

        async def follow(method, path, body=None, **headers):
            client = await stack.enter_async_context(connected(port))
            client.send(method, path, body, headers)
            assert (await client.head())[0] == 200
            return client

        async def cookie(key):
            reply = await sign_in(port, key)
            return reply.headers["set-cookie"].partition(";")[0], reply.json()["csrf"]

        (revoked, _), (signed_out, csrf) = await cookie("old"), await cookie("other")
        old = {"Authorization": "Bearer old"}
        ending = [
            await follow("GET", "/api/events", **old),
            await follow("GET", "/api/models/llama/logs?follow=1", **old),
            await follow("POST", "/api/pull", b'{"model": "hf.co/o/r"}', **old),
            await follow("GET", "/api/events", Cookie=revoked),
        ]
        kept = await follow("GET", "/api/events", Authorization="Bearer other")
        with_session = await follow("GET", "/api/events", Cookie=signed_out)
        gateway.set_api_keys(flat_keys("other", "new"))
        for client in ending:
            # An end as every other, not a broken connection.
            await client.reply_body()
        await asyncio.wait_for(puller.ended.wait(), 60)
        await post(port, {}, "/api/session/end", Cookie=signed_out, X_Cotenant_CSRF=csrf)
        await with_session.reply_body()
        operator.tell(Decision(1, 0.0, DecisionKind.LOAD, "llama", "still followed"))
        while b"still followed" not in await kept.chunk():
            pass


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_plain_pull_ends_with_its_key_and_with_the_daemon(revoked):
    puller, stop = EndlessPuller(), asyncio.Event()
    gateway = plain_gateway(SlotRouter(NOWHERE), puller=puller, api_keys=("old",))
    async with serving(None, gateway=gateway, stop=stop, grace_s=60) as port:
        pull = asyncio.ensure_future(
            post(port, {"model": "hf.co/o/r", "stream": False}, "/api/pull", Authorization="Bearer old")
        )
        await asyncio.wait_for(puller.begun.wait(), 60)
        if revoked:
            gateway.set_api_keys(flat_keys("new"))
        else:
            stop.set()
        assert (await asyncio.wait_for(pull, 60)).status == (401 if revoked else 503)
        await asyncio.wait_for(puller.ended.wait(), 60)
