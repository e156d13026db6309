import asyncio
import json
from dataclasses import replace

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.gateway.http.limits import Limits, Timing
from tests.gateway import stub
from tests.gateway.harness import CHAT, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine, chunk, response
from tests.support.waiting import until

ASK = {"model": "llama", "messages": [{"role": "user", "content": "hé"}], "max_tokens": 16}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
async def test_a_request_reaches_the_engine_and_its_answer_the_client_byte_for_byte(path):
    async with StubEngine() as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        body = json.dumps(ASK, indent=3).encode()
        reply = await fetch(port, "POST", path, body, Content_Type="application/json")
        call = await engine.call()
    assert (reply.status, reply.body) == (200, stub.ANSWER)
    assert (call.method, call.path, call.body) == (b"POST", path.encode(), body)
    assert router.released == [False]


async def test_the_only_model_answers_a_request_that_names_none():
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, {"messages": []})).status == 200
        assert (await post(port, {"model": None, "messages": []})).status == 200


@pytest.mark.parametrize("name", ["llama:latest", "LLAMA", "library/llama", "gpt-4o:latest", "GPT-4o"])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/completions"])
async def test_a_name_in_ollamas_form_means_the_same_in_every_dialect_and_the_engine_gets_its_own(name, path):
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, {**ASK, "model": name, "max_tokens": 2}, path)).status == 200
        assert (await fetch(port, "GET", f"/v1/models/{name.replace('/', '%2F')}")).json()["id"] == "llama"
    assert json.loads(engine.calls[0].body)["model"] == "llama"


@pytest.mark.parametrize("cut", [r"\ud83d", r"\uDE00", r"\ude00\ud83d", r"\ud83d\ud83d\ude00", r"\\ud83d"])
@pytest.mark.parametrize("renamed", [None, "other"])
async def test_half_a_surrogate_pair_does_not_reach_the_engine(cut, renamed):
    content = f"cut é {cut}"
    body = f'{{"model":"llama","max_tokens":2,"messages":[{{"role":"user","content":"{content}"}}]}}'
    async with StubEngine() as engine:
        endpoint = replace(engine.endpoint, model=renamed)
        async with serving(SlotRouter(endpoint)) as port:
            assert (await fetch(port, "POST", CHAT, body.encode())).status == 200
    sent = json.loads(engine.calls[0].body.decode())["messages"][0]["content"]
    sent.encode()
    whole = json.loads(f'"{content}"').encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert sent == whole


async def test_headers_that_concern_one_hop_or_the_gateway_stay_behind():
    sent = {
        "Authorization": "Bearer key",
        "X-Api-Key": "key",
        "Cookie": "a=b",
        "Origin": "http://evil.example",
        "X-Conversation-Id": "7",
        "Accept-Encoding": "gzip",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "TE": "trailers",
        "Content-Type": "application/json",
        "X-Request-Id": "42",
    }
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint), api_keys=("key",)) as port:
        reply = await post(port, ASK, **sent)
        call = await engine.call()
    assert call.headers.pop(b"host") == f"127.0.0.1:{engine.endpoint.port}".encode()
    assert call.headers.pop(b"content-length") == str(len(call.body)).encode()
    assert call.headers == {b"content-type": b"application/json", b"x-request-id": b"42"}
    assert set(reply.headers) == {"content-type", "content-length"}


@pytest.mark.parametrize("sent", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
async def test_a_body_goes_on_as_the_json_that_it_is_whatever_the_client_calls_it(sent):
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, ASK, **sent)).status == 200
        call = await engine.call()
    assert call.headers[b"content-type"] == b"application/json", "vLLM refuses anything else"


async def test_a_stream_passes_event_by_event_as_it_comes():
    go_on = asyncio.Event()

    async def script(call):
        await call.send(stub.STREAM_HEAD)
        await call.send_event(b"1")
        await go_on.wait()
        await call.send_event(b"2")
        await call.send(b"0\r\n\r\n")

    async with (
        StubEngine(script) as engine,
        serving(router := SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        client.post({**ASK, "stream": True})
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert "access-control-allow-origin" not in headers
        assert await client.chunk() == b"data: 1\n\n"
        assert router.held
        go_on.set()
        assert await client.chunk() == b"data: 2\n\n"
        assert await client.chunk() == b""
    assert router.released == [False]


async def test_an_engine_commands_no_browser():
    commands = (
        b"Set-Cookie: a=b",
        b"Clear-Site-Data: *",
        b"Location: http://x/",
        b"Refresh: 0",
        b"Link: <x>",
    )

    async def script(call):
        await call.send(b"HTTP/1.1 200 OK\r\n%b\r\nX-Request-Id: 7\r\n" % b"\r\n".join(commands))
        await call.send(b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, ASK)
    assert reply.headers.keys() & {"set-cookie", "clear-site-data", "location", "refresh", "link"} == set()
    assert reply.headers["x-request-id"] == "7"


async def test_a_body_that_ends_with_the_connection_is_whole():
    async def script(call):
        await call.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nas far as ")
        await call.send(b"it goes")
        call.writer.close()

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, ASK)
    assert (reply.status, reply.body) == (200, b"as far as it goes")


async def test_an_interim_response_is_not_taken_for_the_answer():
    async def script(call):
        await call.send(b"HTTP/1.1 102 Processing\r\nX-Interim: 1\r\n\r\n")
        await stub.answer(call)

    async with StubEngine(script) as engine, serving(SlotRouter(engine.endpoint)) as port:
        reply = await post(port, ASK)
    assert (reply.status, reply.body) == (200, stub.ANSWER)
    assert "x-interim" not in reply.headers


@pytest.mark.parametrize("status", [b"400 Bad Request", b"501 Not Implemented", b"503 Service Unavailable"])
async def test_an_error_of_the_engine_in_the_envelope_passes_as_it_is(status):
    body = b'{"error": {"code": 7, "message": "context is full", "type": "engine_error"}}'

    async def script(call):
        await call.send(response(body, status))

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        reply = await post(port, ASK)
    assert (reply.status, reply.body) == (int(status[:3]), body)
    assert router.released == [False]


@pytest.mark.parametrize("status", [b"500 Oops", b"503 Loading", b"400 Bad", b"418 Teapot"])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "without a reason"),
        (b"<html>", "without a reason"),
        (b"[]", "without a reason"),
        (b'{"error": "text"}', "text"),
        (b'{"base_resp": {"status_msg": "no credit"}}', "no credit"),
        (b'{"error": null, "detail": "it is full"}', "it is full"),
        (b'{"detail": [{"loc": ["body", "top_p"], "msg": "too high", "input": 3}]}', "body.top_p: too high"),
        (b'{"object": "error", "message": {"detail": [{"loc": ["n"], "msg": "extra"}]}}', "n: extra"),
        (b"upstream   is\nbusy", "upstream is busy"),
        (b"<html><head><title>x</title></head><h1>502 Bad&nbsp;Gateway</h1>", ": 502 Bad Gateway"),
        (b"x" * 200_000, "x" * 400 + "…"),
        (b"\xff\xfe", "\ufffd"),
        (b'{"message":' + b"[" * 50_000, "[" * 300),
    ],
)
async def test_an_error_of_the_engine_in_any_other_form_keeps_its_status_and_reason(
    status, body, reason, caplog
):
    caplog.set_level("INFO")

    async def script(call):
        head = b"text/html\r\nRetry-After: 7"
        await call.send(response(body, status, kind=head))

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        reply = await post(port, ASK)
    assert reply.status == int(status[:3])
    assert reply.headers["retry-after"] == "7"
    assert f"the engine answered {reply.status}" in reply.error["message"]
    assert reason in reply.error["message"]
    assert f"status={reply.status}" in caplog.text
    assert len(router.released) == 1


async def _nothing(call):
    call.writer.close()


async def _half_a_head(call):
    await call.send(b"HTTP/1.1 200 OK\r\nContent-")
    call.writer.close()


async def _garbage(call):
    await call.send(b"SSH-2.0-OpenSSH_9.6\r\n")
    await call.closed.wait()


async def _two_lengths(call):
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
    await call.closed.wait()


@pytest.mark.parametrize("script", [_nothing, _half_a_head, _garbage, _two_lengths])
async def test_an_engine_that_breaks_before_its_answer_is_a_502(script):
    timing = Timing(notice_s=0)
    async with (
        StubEngine(script) as engine,
        serving(router := SlotRouter(engine.endpoint), timing=timing) as port,
    ):
        reply = await post(port, ASK)
    assert (reply.status, reply.error["code"]) == (502, "upstream_failed")
    # Whoever closed, the engine may be at work only if it was the gateway.
    assert router.released == ([True] if script in (_garbage, _two_lengths) else [False, False])


async def test_an_engine_that_cannot_be_reached_is_a_502():
    timing = Timing(notice_s=0.05)
    async with serving(router := SlotRouter(Endpoint("127.0.0.1", 1)), timing=timing) as port:
        reply = await post(port, ASK)
    assert (reply.status, reply.error["code"]) == (502, "upstream_failed")
    assert "cannot be reached" in reply.error["message"]
    assert set(router.released) == {False}
    assert not router.held


@pytest.mark.parametrize("torn", [False, True])
async def test_a_stream_that_the_engine_breaks_ends_with_an_error_event(torn):
    async def script(call):
        await call.send(stub.STREAM_HEAD)
        await call.send(chunk(b"data: 1\n\n" + (b'data: {"id":' if torn else b"")))
        call.writer.close()

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        reply = await post(port, {**ASK, "stream": True})
    *_, last, end = reply.body.split(b"\n\n")
    assert end == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
    assert router.released == [False]


async def test_an_answer_that_the_engine_cuts_short_is_cut_short_for_the_client_too():
    async def script(call):
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        call.writer.close()

    async with StubEngine(script) as engine, serving(router := SlotRouter(engine.endpoint)) as port:
        with pytest.raises(asyncio.IncompleteReadError):
            await post(port, ASK)
        await until(lambda: router.released == [False])


async def test_a_client_may_send_its_body_in_chunks():
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        async with connected(port) as client:
            client.send("POST", CHAT, None, {"Transfer-Encoding": "chunked"})
            for piece in (b'{"model":"llama",', b'"max_tokens":9}'):
                client.writer.write(chunk(piece))
                await client.writer.drain()
            client.writer.write(b"0\r\n\r\n")
            assert (await client.reply()).status == 200
        call = await engine.call()
    assert call.body == b'{"model":"llama","max_tokens":9}'
    assert call.headers[b"content-length"] == b"32"


async def test_a_large_body_within_the_limit_arrives_whole():
    content = "x" * 5_000_000
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, {**ASK, "input": content})).status == 200
        call = await engine.call()
    assert json.loads(call.body)["input"] == content


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_and_never_reaches_the_engine(chunked):
    limits = Limits(body_bytes=100_000)
    body = json.dumps({**ASK, "input": "x" * 100_000}).encode()
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), limits=limits) as port,
        connected(port) as client,
    ):
        if chunked:
            client.send("POST", CHAT, None, {"Transfer-Encoding": "chunked"})
            client.writer.write(chunk(body) + b"0\r\n\r\n")
        else:
            client.send("POST", CHAT, body)
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        client.post(ASK)
        assert (await client.reply()).status == 200, "the connection is of use afterwards"
    assert len(engine.calls) == 1


async def test_requests_wait_for_a_slot_and_never_exceed_them():
    async with StubEngine() as engine, serving(router := SlotRouter(engine.endpoint, slots=2)) as port:
        replies = await asyncio.gather(*(post(port, ASK) for _ in range(20)))
    assert {reply.status for reply in replies} == {200}
    assert router.most_held == 2
    assert router.released == [False] * 20
