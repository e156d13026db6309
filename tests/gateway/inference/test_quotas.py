"""Quotas of keys under 64 clients, over sockets."""

import asyncio

import pytest

from cotenant.domain.keys import ApiKey, key_digest
from tests.gateway.harness import SlotRouter, fetch, post, serving
from tests.gateway.stub import Call, StubEngine, response

CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}'
CLIENTS = 64
OWN = {"Authorization": "Bearer app"}
BOSS = {"Authorization": "Bearer boss"}


async def sample(port: int, name: str) -> float:
    text = (await fetch(port, "GET", "/metrics", **BOSS)).body.decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    ("quotas", "admitted", "after"),
    [
        ({"requests_at_once": 5}, 5, 200),
        # Each reserves 26 for its text and 20 for its answer, and uses 30.
        ({"tokens_per_minute": 140}, 3, 200),
        ({"tokens_per_minute": 120}, 2, 200),
        ({"tokens_per_minute": 100}, 2, 429),
    ],
    ids=str,
)
async def test_quotas_hold_under_64_clients_and_others_are_not_concerned(quotas, admitted, after):
    answering, calls = asyncio.Event(), asyncio.Queue[Call]()

    async def script(call: Call) -> None:
        calls.put_nowait(call)
        await answering.wait()
        await call.send(response(ANSWER))

    keys = ApiKey("app", key_digest("app"), **quotas), "boss"
    async with StubEngine(script) as engine:
        router = SlotRouter(engine.endpoint, slots=CLIENTS)
        async with serving(router, api_keys=keys) as port:
            clients = [asyncio.ensure_future(post(port, CHAT, **OWN)) for _ in range(CLIENTS)]
            refused = 0
            for ended in asyncio.as_completed(clients):
                reply = await ended
                assert (reply.status, reply.error["code"]) == (429, "quota_exceeded")
                assert int(reply.headers["retry-after"]) >= 1
                refused += 1
                if refused == CLIENTS - admitted:
                    break
            for _ in range(admitted):
                await calls.get()
            assert await sample(port, 'cotenant_key_requests_in_flight{key="app"}') == admitted
            other = asyncio.ensure_future(post(port, CHAT, **BOSS))
            await calls.get()
            assert len(router.held) == admitted + 1
            answering.set()
            assert (await other).status == 200
            assert sorted([(await each).status for each in clients]) == [200] * admitted + [429] * refused
            assert (await post(port, CHAT, **OWN)).status == after
            done = admitted + (after == 200)
            assert await sample(port, 'cotenant_key_requests_total{key="app",status="2xx"}') == done
            assert await sample(port, 'cotenant_key_tokens_total{key="app",kind="completion"}') == 20 * done
            assert await sample(port, 'cotenant_key_tokens_total{key="app",kind="prompt"}') == 10 * done
            assert await sample(port, 'cotenant_key_refused_total{key="app"}') == CLIENTS + 1 - done
            assert await sample(port, 'cotenant_key_requests_in_flight{key="app"}') == 0
