import json
import math

import pytest

from cotenant.domain.errors import BadRequest
from cotenant.domain.requests import LeaseTerms
from cotenant.gateway.inference.request_options import (
    RequestOptions,
    conversation_keys,
    read_request_options,
)
from tests.gateway.harness import SlotRouter, post, serving
from tests.gateway.stub import StubEngine

ASK = {"model": "llama", "messages": [], "max_tokens": 8}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("10m", 600.0), ("0", 0.0), ("-1", math.inf), ("forever", math.inf), ("250ms", 0.25), ("-5m", math.inf)],
)
def test_keep_alive_comes_as_a_duration_nothing_or_for_ever(value, seconds):
    wishes = read_request_options([(b"x-cotenant-keep-alive", value.encode())], {})
    assert wishes.terms == LeaseTerms(keep_alive_s=seconds)


@pytest.mark.parametrize(("value", "seconds"), [(300, 300.0), (0, 0.0), (-1, math.inf), ("5m", 300.0)])
def test_ollamas_keep_alive_in_the_body_is_honoured_and_gives_way_to_the_header(value, seconds):
    assert read_request_options([], {"keep_alive": value}).terms.keep_alive_s == seconds
    assert (
        read_request_options([(b"x-cotenant-keep-alive", b"7s")], {"keep_alive": value}).terms.keep_alive_s
        == 7.0
    )


def test_a_request_that_asks_for_nothing_leaves_all_to_the_model():
    assert read_request_options([(b"host", b"x")], {"keep_alive": None}) == RequestOptions()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Keep-Alive", "soon"),
        ("Keep-Alive", ""),
        ("Keep-Alive", "-"),
        ("Priority", "high"),
        ("Priority", "11"),
        ("Priority", "-11"),
        ("Timeout", "-1"),
        ("Timeout", "later"),
        ("Wait-Comments", "yes"),
    ],
)
async def test_a_term_that_means_nothing_is_a_400_that_names_it(header, value):
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, ASK, **{f"X-Cotenant-{header}": value})
    assert (reply.status, reply.error["code"]) == (400, "bad_request")
    assert f"X-Cotenant-{header}" in reply.error["message"]
    assert engine.calls == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("5us", 5e-6), ("5µs", 5e-6), (".5h", 1800.0), ("+5m", 300.0), ("1h.5m", 3630.0), ("1.h", 3600.0)),
        *((2.5, 2.5), (1e20, math.inf), (10**400, math.inf), (-(10**400), math.inf), (-1.5, math.inf)),
        *(("-5m30s", math.inf), ("-0", 0.0), (-0.0, 0.0), ("0", 0.0), ("300.5", 300.5)),
    ],
)
def test_keep_alive_is_read_as_ollama_reads_it(value, seconds):
    assert read_request_options([], {"keep_alive": value}).terms.keep_alive_s == pytest.approx(seconds)


@pytest.mark.parametrize("value", [True, [], {}, "whenever", math.nan])
def test_a_keep_alive_of_another_type_is_refused(value):
    with pytest.raises(BadRequest, match="keep_alive"):
        read_request_options([], {"keep_alive": value})


async def test_terms_reach_the_router_and_not_the_engine():
    async with StubEngine() as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        sent = {"X-Cotenant-Keep-Alive": "1h", "X-Cotenant-Priority": "-3", "X-Cotenant-Timeout": "2s"}
        assert (await post(port, {**ASK, "keep_alive": "5m"}, **sent)).status == 200
        call = await engine.call()
    assert router.terms == [LeaseTerms(priority=-3, keep_alive_s=3600.0, timeout_s=2.0)]
    assert not [name for name in call.headers if name.startswith(b"x-cotenant")]
    assert json.loads(call.body) == ASK


@pytest.mark.parametrize("value", ["61m", "9000d", "9" * 400])
def test_a_wait_is_an_hour_at_most(value):
    with pytest.raises(BadRequest, match="X-Cotenant-Timeout"):
        read_request_options([(b"x-cotenant-timeout", value.encode())], {})


def keys(**request):
    return conversation_keys(request)


def test_a_conversation_that_goes_on_has_the_last_key_of_its_last_turn():
    question = {"role": "user", "content": "hi"}
    answer = {"role": "assistant", "content": "hello", "refusal": None}
    said = {"role": "assistant", "content": "hello"}
    first = keys(messages=[question])
    second = keys(messages=[question, said, {"role": "user", "content": [{"type": "text", "text": "more"}]}])
    third = keys(messages=[question, answer, question])
    assert first[-1] == second[0] == third[0]
    assert second[1] == third[1]
    assert len({*second, *third}) == 4


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "ho"}]},
        {"messages": [{"role": "system", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi"}], "system": "be brief"},
        {"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "f"}]},
        {"messages": []},
        {},
    ],
)
def test_other_conversations_have_other_keys(other):
    assert not {*keys(messages=[{"role": "user", "content": "hi"}])} & {*conversation_keys(other)}


def test_a_prompt_that_goes_on_shares_the_keys_of_its_whole_pieces_and_few_are_kept():
    assert keys(prompt="x" * 3000)[:2] == keys(prompt="x" * 2500)[:2]
    assert keys(prompt="x" * 2048)[-1] in keys(prompt="x" * 2048 + "y")
    assert len(keys(prompt="x" * 1_000_000)) == 64
    assert keys(input=["a", {"type": "message", "content": [{"text": "b"}]}])


async def test_only_for_a_model_with_copies_a_request_says_which_conversation_it_is(monkeypatch):
    async with StubEngine() as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        ask = {**ASK, "messages": [{"role": "user", "content": "hi"}]}
        await post(port, ask)
        monkeypatch.setattr(router, "has_copies", lambda name: name == "llama")
        await post(port, ask)
    assert [each.conversation for each in router.terms] == [(), conversation_keys(ask)]
