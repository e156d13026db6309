import asyncio
import json
import math
import threading
import time
from dataclasses import replace

import pytest

from cotenant.clock import SystemClock
from cotenant.domain.decisions import Decision, DecisionKind, ModelStatus
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting, DoesNotFit, EngineLoadFailed
from cotenant.domain.fragmentation import Defragmentation, ModelMove
from cotenant.domain.models import ModelKind
from cotenant.domain.nodes import NodeUnreachable
from cotenant.domain.requests import ServedModel
from cotenant.domain.units import GIB
from cotenant.gateway.http.limits import Timing
from tests.gateway.harness import MODEL, SlotRouter, connected, fetch, serving
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.waiting import until

NOWHERE = Endpoint("127.0.0.1", 1)
SLASHED = ServedModel("org/bert", ModelKind.EMBEDDING, created_at=2, state="unloaded")
BUSY = ModelStatus(
    "llama", "ready", in_flight=2, keep_alive_left_s=math.inf, predicted_bytes=GIB, devices=("GPU-a",)
)
QUICK = Timing(heartbeat_s=0.02, log_poll_s=0.01)


def setting(*, operator=None, **options):
    operator = operator or PlainOperator(BUSY, ModelStatus("org/bert", "unloaded"))
    return operator, serving(SlotRouter(NOWHERE, models=(MODEL, SLASHED)), operator, timing=QUICK, **options)


def decision(
    number: int, text: str, *, model="llama", kind=DecisionKind.EVICT, at: float | None = None
) -> Decision:
    return Decision(
        number, SystemClock().now() if at is None else at, kind, model, text, "event 7", {"idle_s": 312}
    )


async def test_models_are_listed_with_how_they_do():
    operator, served = setting()
    async with served as port:
        models = (await fetch(port, "GET", "/api/models")).json()["models"]
    assert [model["name"] for model in models] == ["llama", "org/bert"]
    assert (models[0]["in_flight"], models[0]["predicted_bytes"], models[0]["devices"]) == (2, GIB, ["GPU-a"])
    assert models[0]["keep_alive_left_s"] is None, "JSON has no infinity"
    assert models[0]["aliases"] == ["gpt-4o"]
    assert operator.calls == ["statuses"]


@pytest.mark.parametrize("path", ["llama", "gpt-4o", "LLAMA:latest", "library/llama"])
async def test_orders_take_names_and_aliases_and_answer_with_how_it_is_then(path):
    _, served = setting()
    async with served as port:
        unloaded = await fetch(port, "POST", f"/api/models/{path}/unload", b"")
        loaded = await fetch(port, "POST", f"/api/models/{path}/load", b"")
        pinned = await fetch(port, "POST", f"/api/models/{path}/pin", b"")
        unpinned = await fetch(port, "POST", f"/api/models/{path}/unpin", b"")
    assert (unloaded.status, unloaded.json()["state"]) == (200, "unloaded")
    assert (loaded.status, loaded.json()["state"]) == (200, "ready")
    assert (pinned.json()["pinned"], unpinned.json()["pinned"]) == (True, False)


@pytest.mark.parametrize("path", ["org%2Fbert", "org/bert"])
async def test_names_with_slashes_work(path):
    _, served = setting()
    async with served as port:
        assert (await fetch(port, "POST", f"/api/models/{path}/load", b"")).json()["name"] == "org/bert"
        assert (await fetch(port, "GET", f"/api/models/{path}/why")).json()["model"] == "org/bert"
        assert (await fetch(port, "GET", f"/api/models/{path}")).json()["state"] == "ready"


async def test_an_order_need_not_be_waited_for():
    operator, served = setting()
    operator.gate.clear()
    async with served as port:
        reply = await fetch(port, "POST", "/api/models/org%2Fbert/load?wait=0", b"")
        assert (reply.status, reply.json()["state"]) == (202, "unloaded")
        await until(lambda: "load org/bert" in operator.calls)
        operator.gate.set()
        await until(lambda: operator.models["org/bert"].state == "ready")


async def test_an_order_that_fails_unwatched_is_logged(caplog):
    operator, served = setting()
    operator.fault = EngineLoadFailed("the engine died")
    async with served as port:
        assert (await fetch(port, "POST", "/api/models/llama/load?wait=0", b"")).status == 202
        await until(lambda: "the engine died" in caplog.text)


@pytest.mark.parametrize(
    ("fault", "status", "retry"),
    [(DoesNotFit("too large"), 503, None), (EngineLoadFailed("died", retry_after_s=30.5), 503, "31")],
)
async def test_an_order_that_fails_says_so(fault, status, retry):
    operator, served = setting()
    operator.fault = fault
    async with served as port:
        reply = await fetch(port, "POST", "/api/models/llama/load", b"")
    assert (reply.status, reply.error["code"], reply.headers.get("retry-after")) == (
        status,
        fault.code,
        retry,
    )


async def test_reload_says_what_changed_or_what_is_wrong():
    operator, served = setting()
    async with served as port:
        assert (await fetch(port, "POST", "/api/reload", b"")).json() == {
            "changed": ["llama: keep_alive 5m -> 10m"]
        }
        operator.fault = BadSetting("cotenant.yaml line 3: unknown key 'modles'", hint="Did you mean models?")
        reply = await fetch(port, "POST", "/api/reload", b"")
    assert (reply.status, reply.error["code"]) == (422, "bad_setting")
    assert "line 3" in reply.error["message"]


async def test_devices_are_shown_with_whose_their_memory_is():
    _, served = setting()
    async with served as port:
        card, host = (await fetch(port, "GET", "/api/devices")).json()["devices"]
    assert (card["uuid"], card["claimed_bytes"], card["foreign_bytes"]) == ("GPU-a", 8 * GIB, 6 * GIB)
    assert (host["index"], host["free_bytes"]) == (None, None)


async def test_moves_for_a_model_are_proposed_made_and_told_with_why():
    operator, served = setting()
    moves = (ModelMove("org/bert", ("GPU-b",), "GPU-a", GIB, live=True),)
    operator.proposed = Defragmentation("llama", True, moves, 1, "llama would fit if org/bert moved to GPU 0")
    async with served as port:
        found = (await fetch(port, "GET", "/api/defragmentation?model=gpt-4o")).json()
        assert not operator.calls
        made = (await fetch(port, "POST", "/api/defragmentation?model=gpt-4o", b"")).json()
        why = (await fetch(port, "GET", "/api/models/llama/why")).json()
        unknown = await fetch(port, "GET", "/api/defragmentation?model=none")
        operator.fault = DoesNotFit("org/bert was not moved: no room")
        failed = await fetch(port, "POST", "/api/defragmentation", b"")
    assert found["moves"] == [
        {"model": "org/bert", "origin": ["GPU-b"], "to": "GPU-a", "bytes": GIB, "live": True}
    ]
    assert made == found == why["defragmentation"]
    assert [call for call in operator.calls if call != "statuses"] == ["defragment llama", "defragment"]
    assert unknown.status == 404
    assert (failed.status, failed.error["code"]) == (503, "does_not_fit")


async def test_why_tells_the_story_as_json_and_in_words_with_the_time_of_day():
    operator, served = setting()
    operator.tell(decision(1, "idle 312 s, 0.00 requests/s; frees 3.0 GiB"))
    operator.tell(decision(2, "about another", model="org/bert"))
    operator.tell(decision(3, "long ago", at=SystemClock().now() - 3 * 86400))
    async with served as port:
        told = (await fetch(port, "GET", "/api/models/gpt-4o/why")).json()
        words = await fetch(port, "GET", "/api/models/llama/why", Accept="text/plain")
    first = told["decisions"][0]
    assert [one["number"] for one in told["decisions"]] == [1, 3]
    assert (first["kind"], first["cause"], first["facts"]) == ("evict", "event 7", {"idle_s": 312})
    assert first["time"].startswith(time.strftime("%Y-%m-%dT%H:"))
    today, earlier = words.body.decode().splitlines()
    assert today.split()[:3] == [first["time"][11:19], "evict", "idle"]
    assert earlier.startswith(time.strftime("%Y-"))


async def test_events_are_followed_as_they_come_with_heartbeats_between():
    operator, served = setting()
    async with served as port, connected(port) as client:
        client.send("GET", "/api/events")
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert await client.chunk() == b": alive\n\n"
        operator.tell(decision(4, "idle"))
        while (event := await client.chunk()).startswith(b":"):
            pass
        name, kind, data = event.decode().split("\n")[:3]
        assert (name, kind) == ("id: 4", "event: evict")
        assert json.loads(data.removeprefix("data: "))["text"] == "idle"
        client.leave()
        await until(lambda: operator.readers == 1)  # the gateway goes on counting


async def test_a_slow_reader_of_events_holds_up_nobody():
    operator, served = setting()
    async with served as port, connected(port) as slow:
        slow.writer.transport.pause_reading()
        slow.send("GET", "/api/events")
        await until(lambda: operator.readers == 2)
        for number in range(400):
            operator.tell(decision(number, "x" * 20_000))
            await asyncio.sleep(0)
        assert (await fetch(port, "GET", "/health")).status == 200


async def test_feeds_and_followed_logs_do_not_hold_up_a_shutdown(tmp_path):
    stop = asyncio.Event()
    operator, _ = setting()
    operator.logs["llama"] = tmp_path / "llama.log"
    operator.logs["llama"].write_text("one\n")
    async with (
        serving(SlotRouter(NOWHERE), operator, stop=stop, grace_s=3600) as port,
        connected(port) as events,
        connected(port) as logs,
    ):
        events.send("GET", "/api/events")
        logs.send("GET", "/api/models/llama/logs?follow=1")
        await events.head()
        await logs.head()
        stop.set()
        assert await events.reply_body() == b""
        assert await logs.reply_body() == b"one\n"


async def test_the_operator_is_asked_for_a_log_in_the_event_loops_thread_alone(tmp_path):
    """Its engines come and go there; a file that is read elsewhere must not have it looked up elsewhere."""
    (tmp_path / "llama.log").write_text("one\n")
    askers: set[int] = set()

    class Threaded(PlainOperator):
        def log_path(self, name):
            askers.add(threading.get_ident())
            return tmp_path / "llama.log"

    _, served = setting(operator=Threaded(BUSY))
    async with served as port:
        assert (await fetch(port, "GET", "/api/models/llama/logs")).body == b"one\n"
    assert askers == {threading.get_ident()}


async def test_logs_show_the_last_lines(tmp_path):
    operator, served = setting()
    operator.logs["llama"] = tmp_path / "llama.log"
    operator.logs["llama"].write_text("".join(f"line {n}\n" for n in range(500)))
    async with served as port:
        default = await fetch(port, "GET", "/api/models/llama/logs")
        two = await fetch(port, "GET", "/api/models/llama/logs?tail=2")
        none = await fetch(port, "GET", "/api/models/llama/logs?tail=0")
        bad = await fetch(port, "GET", "/api/models/llama/logs?tail=-1")
        unwritten = await fetch(port, "GET", "/api/models/org%2Fbert/logs")
        operator.models["org/bert"] = replace(operator.models["org/bert"], last_failure="no engine here")
        failed = await fetch(port, "GET", "/api/models/org%2Fbert/logs")
    assert default.headers["content-type"].startswith("text/plain")
    assert len(default.body.splitlines()) == 100
    assert (two.body, none.body) == (b"line 498\nline 499\n", b"")
    assert (bad.status, unwritten.status) == (400, 404)
    assert "no log yet" in unwritten.error["message"]
    assert failed.error["message"].endswith("no log yet. No engine was started: no engine here")


async def test_the_first_line_of_a_log_is_shown_if_it_is_ours(tmp_path):
    operator, served = setting()
    path = operator.logs["llama"] = tmp_path / "llama.log"
    path.write_text("[cotenant] in this log CUDA0 is GPU 1 RTX A400\none\ntwo\n")
    async with served as port:
        two, all_of_it = [
            await fetch(port, "GET", f"/api/models/llama/logs?tail={count}") for count in (1, 9)
        ]
    assert two.body == b"[cotenant] in this log CUDA0 is GPU 1 RTX A400\ntwo\n"
    assert all_of_it.body.decode() == path.read_text()


async def test_a_followed_log_goes_on_through_rotation_and_a_new_file(tmp_path):
    operator, served = setting()
    path = operator.logs["llama"] = tmp_path / "llama.log"
    path.write_text("old\nlast\n")
    async with served as port, connected(port) as client:
        client.send("GET", "/api/models/llama/logs?tail=1&follow=1")
        await client.head()
        assert await client.chunk() == b"last\n"
        with path.open("a") as log:
            log.write("more\n")
        assert await client.chunk() == b"more\n"
        path.write_text("cut\n")  # copied and cut to nothing, as the daemon rotates
        assert await client.chunk() == b"cut\n"
        path.rename(tmp_path / "llama.log.1")
        path.write_text("set aside\n")
        assert await client.chunk() == b"set aside\n"
        operator.logs["llama"] = tmp_path / "other.log"
        operator.logs["llama"].write_text("elsewhere\n")
        assert await client.chunk() == b"elsewhere\n"


async def test_methods_and_names_are_checked_before_anything_is_done():
    operator, served = setting()
    async with served as port:
        assert (await fetch(port, "GET", "/api/models/llama/load")).headers["allow"] == "POST"
        assert (await fetch(port, "POST", "/api/models/llama/why", b"")).status == 405
        unknown = await fetch(port, "POST", "/api/models/nope/load", b"")
        odd = await fetch(port, "POST", "/api/models/llama/load?wait=maybe", b"")
        nothing = await fetch(port, "GET", "/api/nothing")
    assert (unknown.status, unknown.error["param"]) == (404, "model")
    assert (odd.status, nothing.status) == (400, 404)
    assert operator.calls == []


async def test_everything_is_behind_the_key():
    _, served = setting(api_keys=("key",))
    async with served as port:
        for method, path in (
            ("GET", "/api/events"),
            ("POST", "/api/models/llama/unload"),
            ("GET", "/metrics"),
        ):
            assert (await fetch(port, method, path, b"" if method == "POST" else None)).status == 401


async def test_a_page_of_another_site_may_not_give_orders():
    operator, served = setting()
    async with served as port:
        evil = await fetch(port, "POST", "/api/models/llama/unload", b"", Origin="http://evil.example")
        own = await fetch(port, "POST", "/api/models/llama/unload", b"", Origin="http://localhost")
    assert (evil.status, own.status) == (403, 200)
    assert operator.calls.count("unload llama") == 1


async def test_the_last_decisions_are_told_oldest_first():
    operator, served = setting()
    for number in range(1, 5):
        operator.tell(decision(number, f"step {number}", model=None if number == 4 else "llama"))
    async with served as port:
        told = (await fetch(port, "GET", "/api/decisions?limit=2")).json()["decisions"]
        everything = (await fetch(port, "GET", "/api/decisions")).json()["decisions"]
        assert (await fetch(port, "GET", "/api/decisions?limit=0")).json() == {"decisions": []}
        assert (await fetch(port, "GET", "/api/decisions?limit=x")).status == 400
    assert [each["text"] for each in told] == ["step 3", "step 4"]
    assert (len(everything), told[1]["model"]) == (4, None)


async def test_a_log_on_another_machine_is_read_and_followed_as_one_here():
    content, silent = bytearray(b"".join(b"line %d\n" % n for n in range(500))), False

    async def read(offset, limit_bytes):
        if silent:
            raise NodeUnreachable("b does not answer", hint="Is it up?")
        start = max(0, len(content) - limit_bytes) if offset is None else offset
        return bytes(content[start : start + limit_bytes]), start, len(content)

    operator, served = setting()
    operator.remote_logs["llama"] = read
    async with served as port:
        two = await fetch(port, "GET", "/api/models/llama/logs?tail=2")
        assert two.body == b"line 498\nline 499\n"
        async with connected(port) as client:
            client.send("GET", "/api/models/llama/logs?tail=1&follow=1")
            await client.head()
            assert await client.chunk() == b"line 499\n"
            silent = True
            unheard = await fetch(port, "GET", "/api/models/llama/logs")
            assert unheard.status == 503
            assert b"b does not answer" in unheard.body
            content += b"more\n"
            silent = False
            assert await client.chunk() == b"more\n"
