"""Clients of streams that are told how their wait goes."""

import asyncio
import json

import pytest

from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.errors import WaitTimeout
from cotenant.domain.requests import WaitProgress
from cotenant.gateway.http.limits import Timing
from cotenant.gateway.inference.progress import wait_comment
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

ASK = {"model": "llama", "messages": [], "stream": True}
WISH = {"X-Cotenant-Wait-Comments": "1"}
QUICK = Timing(comment_s=0.02)


@pytest.mark.parametrize(
    ("estimate", "place", "said"),
    [
        (None, None, b": waiting\n\n"),
        (
            WaitEstimate(2, 12.0, "loading llama-7b"),
            2,
            b": waiting, 2nd in line, about 12.0 s (loading llama-7b)\n\n",
        ),
        (WaitEstimate(1, None, "a free\nslot"), 1, b": waiting, 1st in line (a free slot)\n\n"),
        (WaitEstimate(13, None, ""), 13, b": waiting, 13th in line\n\n"),
        (WaitEstimate(103, None, ""), 103, b": waiting, 103rd in line\n\n"),
    ],
)
def test_a_comment_says_place_time_and_reason_as_far_as_known(estimate, place, said):
    assert wait_comment(estimate, place) == said


async def test_a_stream_that_must_wait_begins_with_comments_and_goes_on_with_the_answer():
    async with (
        StubEngine(stub.stream_then_close) as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1), timing=QUICK) as port,
        connected(port) as client,
    ):
        router.estimates["llama"] = WaitEstimate(2, 3.0, "loading")
        held = router.try_lease("llama")
        client.post(ASK, headers=WISH)
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert await client.chunk() == b": waiting, 2nd in line, about 3.0 s (loading)\n\n"
        router.estimates["llama"] = WaitEstimate(5, 9.0, "loading")
        while (comment := await client.chunk()).endswith(b"3.0 s (loading)\n\n"):
            pass
        assert b"2nd in line, about 9.0 s" in comment, "others came later: the place stays"
        held.release()
        rest = b""
        while piece := await client.chunk():
            rest += piece
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rest.count(b'"content"') == 3
    assert router.released == [False, False]


async def test_a_refusal_after_comments_is_an_error_event():
    class Refusing(SlotRouter):
        async def lease(self, name, terms):
            await over.wait()
            raise WaitTimeout("no slot in time")

    over = asyncio.Event()

    async with (
        StubEngine() as engine,
        serving(router := Refusing(engine.endpoint, slots=0), timing=QUICK) as port,
        connected(port) as client,
    ):
        client.post(ASK, headers=WISH)
        assert (await client.head())[0] == 200
        for _ in range(2):
            assert (await client.chunk()).startswith(b": waiting")
        over.set()
        *comments, last, end = (await client.reply_body()).split(b"\n\n")
    assert end == b""
    assert all(comment.startswith(b": waiting") for comment in comments)
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "wait_timeout"
    assert not router.held


async def test_a_refusal_at_once_has_its_own_status():
    class Refusing(SlotRouter):
        async def lease(self, name, terms):
            raise WaitTimeout("no slot at all", retry_after_s=7.2)

    async with StubEngine() as engine, serving(Refusing(engine.endpoint, slots=0)) as port:
        reply = await post(port, ASK, **WISH)
    assert (reply.status, reply.headers["retry-after"]) == (504, "8")


async def test_an_engine_that_refuses_after_comments_does_so_as_an_event():
    body = b'{\n "error": {"message": "context is full", "code": 400}\n}'

    async def script(call):
        await call.send(stub.response(body, b"400 Bad Request"))

    async with (
        StubEngine(script) as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1), timing=QUICK) as port,
        connected(port) as client,
    ):
        held = router.try_lease("llama")
        client.post(ASK, headers=WISH)
        await client.head()
        held.release()
        rest = (await client.reply_body()).split(b"\n\n")
    assert json.loads(rest[-2].removeprefix(b"data: ")) == json.loads(body)


@pytest.mark.parametrize("ask", [{**ASK, "stream": False}, {"model": "llama", "input": "x"}])
async def test_without_a_stream_there_is_nothing_to_comment_in(ask):
    async with (
        StubEngine() as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1), timing=QUICK) as port,
        connected(port) as client,
    ):
        held = router.try_lease("llama")
        client.post(ask, headers=WISH)
        await until(lambda: len(router.waiting) == 1)
        held.release()
        reply = await client.reply()
    assert (reply.status, reply.body) == (200, stub.ANSWER)


async def test_a_client_that_leaves_among_comments_gives_up_its_place():
    async with (
        StubEngine() as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1), timing=QUICK) as port,
        connected(port) as client,
    ):
        router.try_lease("llama")
        client.post(ASK, headers=WISH)
        await client.head()
        await client.chunk()
        client.leave()
        await until(lambda: not router.waiting)
        assert router.released == []


async def test_a_shutdown_among_comments_is_told_and_loses_no_slot():
    stop = asyncio.Event()
    async with (
        StubEngine() as engine,
        serving(router := SlotRouter(engine.endpoint, slots=1), timing=QUICK, stop=stop) as port,
        connected(port) as client,
    ):
        router.try_lease("llama")
        client.post(ASK, headers=WISH)
        await client.head()
        stop.set()
        rest = await client.reply_body()
    assert json.loads(rest.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"] == "shutting_down"
    assert not router.waiting


CONFIGURED = Timing(comment_s=0.02, progress_after_s=0.02)


def reasoning(piece: bytes) -> str:
    (choice,) = json.loads(piece.removeprefix(b"data: "))["choices"]
    return choice["delta"]["reasoning_content"]


async def test_a_chat_is_told_as_reasoning_once_for_each_change_if_it_is_configured():
    async with (
        StubEngine(stub.stream_then_close) as engine,
        serving(
            router := SlotRouter(engine.endpoint, slots=1),
            timing=CONFIGURED,
            wait_progress=WaitProgress.REASONING,
        ) as port,
        connected(port) as client,
    ):
        router.estimates["llama"] = WaitEstimate(1, 3.0, "the model to be loaded")
        held = router.try_lease("llama")
        client.post({**ASK, "model": "gpt-4o"})
        await client.head()
        first = await client.chunk()
        assert reasoning(first) == "Waiting, 1st in line, about 3.0 s (the model to be loaded).\n"
        assert json.loads(first.removeprefix(b"data: "))["model"] == "llama"
        assert await client.chunk() == b": waiting\n\n"
        router.estimates["llama"] = WaitEstimate(1, 1.0, "the model to be loaded, 60 % of its files read")
        while (piece := await client.chunk()) == b": waiting\n\n":
            pass
        assert "60 % of its files read" in reasoning(piece)
        held.release()
        rest = await client.reply_body()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rest.count(b'"content"') == 3


@pytest.mark.parametrize("configured", ["comments", "reasoning"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/v1/responses"])
async def test_other_streams_are_told_in_comments(configured, path):
    async with (
        StubEngine(stub.stream_then_close) as engine,
        serving(
            router := SlotRouter(engine.endpoint, slots=1),
            timing=CONFIGURED,
            wait_progress=WaitProgress(configured),
        ) as port,
        connected(port) as client,
    ):
        held = router.try_lease("llama")
        client.post(ASK, path)
        await client.head()
        assert await client.chunk() == b": waiting\n\n"
        held.release()
        await client.reply_body()


@pytest.mark.parametrize(
    ("ask", "path", "headers"),
    [
        (ASK, "/v1/chat/completions", {"X-Cotenant-Wait-Comments": "0"}),
        ({**ASK, "stream": False}, "/v1/chat/completions", {}),
        ({**ASK, "messages": [{"role": "user", "content": "Hi"}]}, "/api/chat", {}),
    ],
    ids=["not wished", "no stream", "Ollama"],
)
async def test_who_wishes_it_not_has_no_stream_or_is_ollamas_client_gets_no_word(ask, path, headers):
    async with (
        StubEngine(stub.stream_then_close) as engine,
        serving(
            router := SlotRouter(engine.endpoint, slots=1),
            timing=CONFIGURED,
            wait_progress=WaitProgress.REASONING,
        ) as port,
        connected(port) as told,
        connected(port) as client,
    ):
        held = router.try_lease("llama")
        client.post(ask, path, headers)
        await until(lambda: len(router.waiting) == 1)
        told.post(ASK)
        await told.head()
        for _ in range(3):
            await told.chunk()
        held.release()
        reply = await client.reply()
    assert b"waiting" not in reply.body.lower()
    assert b"reasoning" not in reply.body


async def test_what_is_refused_soon_keeps_its_own_status_also_if_progress_is_configured():
    class Refusing(SlotRouter):
        async def lease(self, name, terms):
            await asyncio.sleep(0)
            raise WaitTimeout("no slot at all")

    async with (
        StubEngine() as engine,
        serving(
            Refusing(engine.endpoint, slots=0),
            timing=Timing(progress_after_s=60.0),
            wait_progress=WaitProgress.COMMENTS,
        ) as port,
    ):
        assert (await post(port, ASK)).status == 504
