"""Requests that crash engines, among others that do not."""

import asyncio
import json

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadRequest, CrashesEngine, EngineDied, EngineHung
from cotenant.domain.exit_causes import Cause
from cotenant.gateway.inference.grammar import check_bounds
from cotenant.gateway.inference.suspects import Suspects, Turn
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_gateway import plain_gateway
from tests.support.waiting import until

CRASH = EngineDied("llama died: it crashed (SIGSEGV)", cause=Cause.CRASHED)
HANG = EngineHung("llama was killed because it hung: it computes nothing")
ASK = {"model": "llama", "messages": [], "max_tokens": 8}


async def crash_on_poison(call):
    if b"poison" in call.body:
        call.writer.close()
    else:
        await stub.answer(call)


async def test_a_request_that_crashes_engines_is_asked_twice_then_refused_and_others_are_not():
    async with StubEngine(crash_on_poison) as engine:
        router = SlotRouter(engine.endpoint)
        router.death = CRASH
        async with serving(router) as port:
            first = await post(port, {**ASK, "user": "poison"})
            assert (first.status, first.error["code"]) == (422, "crashes_engine")
            assert "SIGSEGV" in first.error["message"]
            assert len(engine.calls) == 2
            assert (await post(port, {**ASK, "user": "poison"})).status == 422
            assert len(engine.calls) == 2
            assert (await post(port, ASK)).status == 200
    assert not router.held


@pytest.mark.parametrize(
    "cause", [Cause.KILLED, Cause.GPU_MEMORY_RUNNING, Cause.OOM_KILLED, Cause.MAPPED_FILE]
)
async def test_an_end_that_no_request_caused_is_held_against_none(cause):
    async with StubEngine(crash_on_poison) as engine:
        router = SlotRouter(engine.endpoint)
        router.death = EngineDied("llama died", cause=cause)
        async with serving(router) as port:
            for _ in range(2):
                assert (await post(port, {**ASK, "user": "poison"})).status == 503
    assert len(engine.calls) == 4


async def test_a_request_that_hangs_engines_is_refused_when_it_is_sent_again_and_others_are_not():
    async with StubEngine(crash_on_poison) as engine:
        router = SlotRouter(engine.endpoint)
        router.death = HANG
        async with serving(router) as port:
            first = await post(port, {**ASK, "user": "poison"})
            assert (first.status, first.error["code"]) == (504, "engine_hung")
            assert (await post(port, ASK)).status == 200
            again = await post(port, {**ASK, "user": "poison"})
            assert (again.status, again.error["code"]) == (422, "crashes_engine")
            assert "it hung" in again.error["message"]
            before = len(engine.calls)
            assert (await post(port, {**ASK, "user": "poison"})).status == 422
            assert len(engine.calls) == before
    assert not router.held


@pytest.mark.parametrize("silence_s", [600.0, 0.05])
async def test_a_request_is_remembered_though_its_client_did_not_wait_for_the_hang_to_be_seen(silence_s):
    seen = asyncio.Event()
    async with StubEngine(stub.never_answer) as engine:
        router = SlotRouter(engine.endpoint)
        router.seen_dead, router.death, router.silence_s = seen.wait, HANG, silence_s
        gateway = plain_gateway(router)
        async with serving(router, gateway=gateway) as port, connected(port) as client:
            client.post({**ASK, "user": "poison"})
            if silence_s == 600.0:
                await until(lambda: engine.calls)
                client.leave()
            else:
                assert (await client.reply()).error["code"] == "answer_timeout"
            await until(lambda: router.released == [True])
            seen.set()
            await until(lambda: gateway._proxy.suspects.crashes)
            engine.script = crash_on_poison
            again = await post(port, {**ASK, "user": "poison"})
            assert (again.status, again.error["code"]) == (422, "crashes_engine")
            assert len(engine.calls) == 2


async def ask_at_once(port, engine, request, replies=4):
    """Send a request that many times, have them die together, and return the answers."""
    together = asyncio.Event()

    async def die(call):
        if len(engine.calls) >= replies:
            together.set()
        await together.wait()
        call.writer.close()

    engine.script = die
    return await asyncio.gather(*(post(port, request) for _ in range(replies)))


async def test_one_hang_counts_once_however_many_clients_had_sent_the_same_request():
    async with StubEngine() as engine:
        router = SlotRouter(engine.endpoint)
        router.death = HANG
        async with serving(router) as port:
            hung = await ask_at_once(port, engine, ASK)
            assert {each.error["code"] for each in hung} == {"engine_hung"}
            engine.script = stub.answer
            assert (await post(port, ASK)).status == 200


async def test_a_request_that_many_sent_crashes_one_engine_more_and_no_other():
    async with StubEngine() as engine:
        router = SlotRouter(engine.endpoint)
        router.death = CRASH
        async with serving(router) as port:
            died = await ask_at_once(port, engine, {**ASK, "user": "poison"})
            assert {each.error["code"] for each in died} == {"crashes_engine"}
    assert len(engine.calls) == 5


def test_it_takes_three_crashes_in_company_and_two_alone():
    company, alone = Suspects(), Suspects()
    for _ in range(2):
        assert company.record("m", b"a", CRASH, Turn("m", alone=False), company.counted)
    with pytest.raises(CrashesEngine):
        company.record("m", b"a", CRASH, None, company.counted)
    joined = Suspects()
    for _ in range(2):
        assert joined.record("m", b"a", CRASH, Turn("m", alone=True, joined=True), joined.counted)
    assert alone.record("m", b"a", CRASH, None, alone.counted)
    with pytest.raises(CrashesEngine):
        alone.record("m", b"a", CRASH, Turn("m", alone=True), alone.counted)


def test_an_answer_clears_a_request():
    suspects = Suspects()
    assert suspects.record("m", b"a", CRASH, None, suspects.counted)
    suspects.clear(b"a")
    assert suspects.record("m", b"a", CRASH, Turn("m", alone=True), suspects.counted)


async def test_a_request_whose_client_left_twice_is_counted_once_for_one_hang():
    suspects, lease = Suspects(), SlotRouter(Endpoint("127.0.0.1", 1))._grant()
    lease._router.death = HANG
    for _ in range(5):
        suspects.watch(lease, "m", b"a", None)
    await until(lambda: suspects.crashes)
    assert suspects.crashes[b"a"][0] == 1


def test_what_is_remembered_is_bounded():
    suspects = Suspects()
    for number in range(2000):
        suspects.record("m", b"%d" % number, CRASH, None, suspects.counted)
    assert len(suspects.crashes) <= 256


async def test_suspects_take_turns_and_others_wait_for_them():
    suspects = Suspects()
    first = await suspects.turn("m", b"/", b"a")
    second = asyncio.ensure_future(suspects.turn("m", b"/", b"a"))
    other = asyncio.ensure_future(suspects.let_pass("m"))
    await suspects.let_pass("another")
    await asyncio.sleep(0)
    assert not second.done()
    assert not other.done()
    suspects.end(first)
    suspects.end(first)
    await other
    assert first.alone
    suspects.end(await second)
    assert not suspects.asking


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "field",
    [
        {"grammar": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": nested(400)}}},
        {"json_schema": {"pattern": "^" + "(" * 5000 + "a" + ")" * 5000 + "$"}},
        {"tools": [{"function": {"parameters": nested(150)}}]},
        {"guided_json": [[0] * 1000] * 1000},
    ],
)
def test_grammars_that_may_crash_a_parser_are_refused(field):
    with pytest.raises(BadRequest):
        check_bounds(field, b"")


def test_schemas_that_take_minutes_to_compile_are_refused():
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2000)}}
    for schema in (wide, {"enum": list(range(6000))}, {"prefixItems": [{}] * 6000}):
        with pytest.raises(BadRequest, match="in one object or list"):
            check_bounds({"response_format": {"json_schema": {"schema": schema}}}, b"")


def test_grammars_as_people_write_them_are_not():
    check_bounds(
        {
            "grammar": 'root ::= ("a" | [b-c]){1,3} ' * 2000,
            "response_format": {"type": "json_schema", "json_schema": {"schema": nested(40)}},
            "tools": [
                {"type": "function", "function": {"name": f"f{n}", "parameters": nested(3)}}
                for n in range(1000)
            ],
        },
        b"",
    )


@pytest.mark.parametrize(
    "field",
    [
        {"grammar": "root ::= " + " | ".join(f'"a{n}"' for n in range(20_000))},
        {"dry_sequence_breakers": [f"a{n}" for n in range(5000)]},
        {"logit_bias": {str(n): -1 for n in range(100_000)}},
        {"messages": [{"role": "user", "content": "x", **{f"k{n}": n for n in range(20_000)}}]},
        {f"k{n}": n for n in range(20_000)},
    ],
)
def test_what_holds_up_an_engines_queue_is_refused(field):
    with pytest.raises(BadRequest, match="over"):
        check_bounds(field, json.dumps(field).encode())


def test_long_lists_and_objects_as_people_send_them_are_not():
    request = {
        "grammar": "root ::= " + " | ".join(f'"a{n}"' for n in range(2000)),
        "dry_sequence_breakers": [f"a{n}" for n in range(100)],
        "logit_bias": {str(n): -1 for n in range(9000)},
        "messages": [{"role": "user", "content": "a: b"}] * 20_000,
    }
    check_bounds(request, json.dumps(request).encode())


async def test_no_engine_sees_a_request_that_would_hold_up_its_queue():
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, {**ASK, "dry_sequence_breakers": ["x"] * 20_000})
    assert (reply.status, engine.calls) == (400, [])
    assert "`dry_sequence_breakers`" in reply.error["message"]


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"tools": {"a": 1}}, "`tools` is not a list"),
        ({"messages": "x"}, "`messages` is not a list"),
        ({"stop": 5}, "`stop` is not a string or a list"),
        ({"logit_bias": "x"}, "`logit_bias` is not an object or a list"),
    ],
)
async def test_a_field_of_a_wrong_type_is_named_and_reaches_no_engine(field, said):
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, {**ASK, **field})
        assert (await post(port, {**ASK, **dict.fromkeys(field), "messages": []})).status == 200
    assert (reply.status, reply.error["type"], len(engine.calls)) == (400, "invalid_request_error", 1)
    assert said in reply.error["message"]


@pytest.mark.parametrize(
    ("reason", "status"),
    [("Failed to parse tools: Missing tool type: 5", 400), ("Failed to parse the graph", 500)],
)
async def test_a_wrong_type_within_a_field_is_the_clients_fault_though_the_engine_says_500(reason, status):
    async def refuse(call):
        body = json.dumps({"error": {"code": 500, "message": reason, "type": "server_error"}}).encode()
        await call.send(stub.response(body, b"500 Internal Server Error"))

    async with StubEngine(refuse) as engine:
        router = SlotRouter(engine.endpoint)
        async with serving(router) as port:
            reply = await post(port, {**ASK, "tools": [5]})
    assert (reply.status, router.released) == (status, [False])
    assert reason in reply.error["message"]
