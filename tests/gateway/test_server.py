import asyncio
import contextlib
import json
import socket

import pytest

from cotenant.domain.errors import BadSetting, PortTaken
from cotenant.gateway.http.limits import Limits
from cotenant.gateway.server import bind
from tests.gateway import stub
from tests.gateway.harness import CHAT, Client, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

ASK = {"model": "llama"}


def test_a_taken_port_is_told_before_anything_is_served():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)) as caught:
            bind("127.0.0.1", port)
    assert "--port" in caught.value.hint


async def test_a_port_is_free_again_as_soon_as_the_server_has_ended():
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        client.post(ASK)
        await client.reply()
    bind("127.0.0.1", port).close()


def test_an_address_of_another_machine_is_a_bad_setting():
    with pytest.raises(BadSetting, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_a_host_that_does_not_resolve_is_a_bad_setting():
    with pytest.raises(BadSetting, match="host"):
        bind("a" * 64, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_an_ipv6_address_can_be_listened_on():
    try:
        sock = bind("::1", 0)
    except BadSetting:
        pytest.skip("this machine has no IPv6")
    with sock:
        assert sock.family is socket.AF_INET6


async def test_a_request_in_flight_ends_in_the_grace_and_no_other_is_taken():
    stop, go_on = asyncio.Event(), asyncio.Event()

    async def script(call):
        await go_on.wait()
        await stub.answer(call)

    async with StubEngine(script) as engine:
        router = SlotRouter(engine.endpoint)
        async with (
            serving(router, stop=stop, grace_s=3600) as port,
            connected(port) as busy,
            connected(port) as idle,
        ):
            busy.post(ASK)
            await engine.call()
            stop.set()
            assert await asyncio.wait_for(idle.reader.read(), 60) == b""
            with pytest.raises(ConnectionRefusedError):
                await fetch(port, "GET", "/health")
            go_on.set()
            reply = await busy.reply()
            assert (reply.status, reply.body) == (200, stub.ANSWER)
            assert await asyncio.wait_for(busy.reader.read(), 60) == b""
    assert router.released == [False]


async def test_after_the_grace_waiting_clients_are_told_and_the_engine_is_stopped():
    stop = asyncio.Event()
    async with StubEngine(stub.never_answer) as engine:
        router = SlotRouter(engine.endpoint, slots=1)
        async with serving(router, stop=stop) as port, connected(port) as asked, connected(port) as waiting:
            asked.post(ASK)
            call = await engine.call()
            waiting.post(ASK)
            await until(lambda: len(router.waiting) == 1)
            stop.set()
            for client in (asked, waiting):
                reply = await client.reply()
                assert (reply.status, reply.error["code"]) == (503, "shutting_down")
            await asyncio.wait_for(call.closed.wait(), 60)
    assert not router.held
    assert not router.waiting
    assert router.released[0] is True


async def test_after_the_grace_a_stream_ends_with_an_error_event():
    stop = asyncio.Event()
    async with StubEngine(stub.stream_for_ever) as engine:
        router = SlotRouter(engine.endpoint)
        async with serving(router, stop=stop) as port, connected(port) as client:
            client.post({**ASK, "stream": True})
            await client.head()
            await client.chunk()
            stop.set()
            event = await client.chunk()
            assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "shutting_down"
            assert await client.chunk() == b""
    assert router.released == [True]


async def test_requests_sent_ahead_are_answered_in_order():
    async def script(call):
        await call.send(stub.response(call.body))

    async with (
        StubEngine(script) as engine,
        serving(SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        for number in range(5):
            client.post({**ASK, "n": number})
        assert [(await client.reply()).json()["n"] for _ in range(5)] == list(range(5))


@pytest.mark.parametrize(
    "headers",
    [{f"X-{number}": "1" for number in range(60)}, {"X-Long": "x" * 2000}, {"x" * 2000: "1"}],
    ids=["too many", "a long value", "a long name"],
)
async def test_headers_over_the_limit_are_a_431(headers):
    limits = Limits(head_bytes=2000, headers=50)
    async with (
        serving(SlotRouter(stub.Endpoint("127.0.0.1", 1)), limits=limits) as port,
        connected(port) as client,
    ):
        client.send("GET", "/health", None, headers)
        reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (431, "headers_too_large")


async def _flood(client: Client, piece: bytes) -> int:
    """Send until the other side has had enough; tell how many bytes that took."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 100_000_000:
            client.writer.write(piece)
            await client.writer.drain()
            sent += len(piece)
    return sent


@pytest.mark.parametrize("opening", [b"GET /health HTTP/1.1\r\nX-Endless: ", b"GET /", b""])
async def test_a_head_that_never_ends_is_cut_off(opening):
    async with serving(SlotRouter(stub.Endpoint("127.0.0.1", 1))) as port, connected(port) as client:
        client.writer.write(opening)
        assert await _flood(client, b"x" * 65_536) < 20_000_000


async def test_trailers_that_never_end_are_cut_off():
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        client.send("POST", CHAT, None, {"Transfer-Encoding": "chunked"})
        client.writer.write(b"0\r\n")
        assert await _flood(client, b"X-Trailer: " + b"x" * 65_536 + b"\r\n") < 20_000_000


async def test_what_is_not_http_is_refused():
    async with serving(SlotRouter(stub.Endpoint("127.0.0.1", 1))) as port:
        async with connected(port) as client:
            client.writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            assert (await client.head())[0] == 400
        assert (await fetch(port, "GET", "/health")).status == 200


HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"


@pytest.mark.parametrize(
    "sent", [b"", HALF, HALF + b"\r\n{", b"\r\n"], ids=["nothing", "head", "body", "line"]
)
async def test_a_connection_without_a_whole_request_is_closed_and_one_that_waits_is_not(sent):
    go_on = asyncio.Event()

    async def wait(call):
        await go_on.wait()
        await stub.answer(call)

    limits = Limits(head_s=1.0, silence_s=1.0)
    async with (
        StubEngine(wait) as engine,
        serving(SlotRouter(engine.endpoint), limits=limits) as port,
        connected(port) as waiting,
        connected(port) as kept,
        connected(port) as silent,
    ):
        waiting.post(ASK)
        await engine.call()
        kept.send("GET", "/health")
        await kept.reply()
        silent.writer.write(sent)
        assert await asyncio.wait_for(silent.reader.read(), 60) == b""
        go_on.set()
        assert (await waiting.reply()).status == 200
        kept.writer.write(sent or b"GET")
        assert await asyncio.wait_for(kept.reader.read(), 60) == b""


async def test_a_head_that_comes_byte_by_byte_without_end_is_closed():
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1))
    async with serving(router, limits=Limits(head_s=1.0)) as port, connected(port) as client:
        client.writer.write(HALF)
        closed = asyncio.ensure_future(client.reader.read())
        while not closed.done():
            client.writer.write(b"X")
            await asyncio.wait({closed}, timeout=0.01)
        with contextlib.suppress(ConnectionError):
            assert closed.result() == b""


async def test_a_body_that_drips_without_end_is_closed():
    router = SlotRouter(stub.Endpoint("127.0.0.1", 1))
    async with serving(router, limits=Limits(silence_s=1.0)) as port, connected(port) as client:
        client.writer.write(HALF.replace(b"100", b"1000000") + b"\r\n")
        closed = asyncio.ensure_future(client.reader.read())
        async with asyncio.timeout(60):
            while not closed.done():
                client.writer.write(b"X")
                await asyncio.wait({closed}, timeout=0.01)
        with contextlib.suppress(ConnectionError):
            assert closed.result() == b""


@pytest.mark.parametrize("sent", [b"", HALF, HALF + b"\r\n{"])
async def test_idle_connections_give_way_to_new_ones_and_busy_ones_do_not(sent, caplog):
    async with (
        StubEngine(stub.never_answer) as engine,
        serving(SlotRouter(engine.endpoint), limits=Limits(connections=3)) as port,
        contextlib.AsyncExitStack() as stack,
    ):
        idle = []
        for _ in range(6):
            idle.append(await stack.enter_async_context(connected(port)))
            idle[-1].writer.write(sent)
        assert (await fetch(port, "GET", "/health")).status == 200
        closed = [asyncio.ensure_future(each.reader.read()) for each in idle]
        await until(lambda: sum(each.done() for each in closed) == 4)
        await asyncio.gather(*(each for each in closed if each.done()), return_exceptions=True)
        for number in range(3):
            busy = await stack.enter_async_context(connected(port))
            busy.post(ASK)
            await engine.call(number)
        for _ in range(2):
            refused = await fetch(port, "GET", "/health")
            assert (refused.status, refused.error["code"]) == (503, "too_many_connections")
            assert refused.headers["retry-after"] == "5"
    assert (
        caplog.messages.count("connections are refused: all of the 3 connections that may be open are in use")
        == 1
    )


def test_a_client_that_is_gone_without_a_word_is_noticed_by_the_kernel():
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        listening.setblocking(True)
        with listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


_H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("offer", [_H2C, {"Connection": "upgrade", "Upgrade": "websocket"}])
async def test_an_offer_of_another_protocol_is_ignored_and_its_request_answered(offer, apart, chunked):
    body = json.dumps(ASK).encode()
    fields = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "x", **offer, **fields}.items())
    head = f"POST {CHAT} HTTP/1.1\r\n{lines}\r\n".encode()
    content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        if apart:
            for byte in head:
                client.writer.write(bytes([byte]))
                await asyncio.sleep(0)  # lets the server read some pieces on their own
            client.writer.write(content)
        else:
            client.writer.write(head + content)
        assert (await client.reply()).status == 200
        client.post(ASK)
        assert (await client.reply()).status == 200, "the connection is kept"
        client.send("GET", "/health", headers=offer)
        client.post(ASK)
        assert [(await client.reply()).status for _ in range(2)] == [200, 200], "what follows is answered too"
    assert [json.loads(call.body)["model"] for call in engine.calls] == ["llama"] * 3


async def test_connections_are_kept_between_requests():
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint)) as port,
        connected(port) as client,
    ):
        for _ in range(3):
            client.post(ASK)
            assert (await client.reply()).status == 200
        assert (await post(port, ASK)).status == 200


async def test_a_client_that_reads_nothing_frees_its_slot():
    async def flood(call):
        await call.send(stub.STREAM_HEAD)
        with contextlib.suppress(ConnectionError):
            while not call.closed.is_set():
                await call.send_event(b'"%b"' % (b"x" * 65536))

    async with StubEngine(flood) as engine:
        router = SlotRouter(engine.endpoint)
        async with serving(router, limits=Limits(unread_s=0.5)) as port, connected(port) as client:
            client.post({**ASK, "stream": True})
            await client.head()
            client.writer.transport.pause_reading()
            await until(lambda: router.released == [True])


async def test_a_client_that_reads_slowly_stays():
    async def much(call):
        await call.send(stub.STREAM_HEAD)
        for _ in range(400):
            await call.send_event(b'"%b"' % (b"x" * 16384))
        await call.send(b"0\r\n\r\n")

    async with (
        StubEngine(much) as engine,
        serving(SlotRouter(engine.endpoint), limits=Limits(unread_s=10)) as port,
        connected(port) as client,
    ):
        client.post({**ASK, "stream": True})
        await client.head()
        assert (await client.reply_body()).count(b"data: ") == 400
