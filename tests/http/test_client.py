"""The client against servers that do what they should not. The gateway's connection meets the same ones."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.inference.engine_connections import Pool
from cotenant.http import blocking
from cotenant.http import connection as connection_module
from cotenant.http.addresses import api_endpoint
from cotenant.http.client import (
    Exchange,
    Limits,
    Request,
    Response,
    describe,
    fetch,
    get_url,
    probe,
    tls_problem,
)
from cotenant.http.connection import NotHttp, ResponseBroken
from tests.http.hostile_server import HostileServer, Script, hostile, sends, sends_for_ever
from tests.support.http.tls_server import Authority, self_signed
from tests.support.waiting import DEADLINE_S, until

OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: 4\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
REQUEST = b"GET /path HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT_S = 0.05

Get = Callable[[Endpoint], Awaitable[Response]]


async def get(endpoint: Endpoint) -> Response:
    return await fetch(Request(endpoint, "GET", "/path"), Limits(DEADLINE_S, whole_s=DEADLINE_S))


async def get_by_pool(endpoint: Endpoint) -> Response:
    """Do as the gateway does; fail as the small client does."""
    pool = Pool()
    connection = await pool.connect(endpoint)
    connection.begin(REQUEST, b"")
    body = b""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not connection.ended:
                await connection.more()
                body += connection.take()
    except UpstreamFailed as error:
        raise ResponseBroken(error.message) from None
    finally:
        pool.give_back(connection)
        pool.close()
    assert connection.status is not None
    return Response(connection.status, connection.headers, body)


@pytest.fixture(params=[get, get_by_pool], ids=["client", "pool"])
def getter(request) -> Get:
    return request.param


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (SIZED + b"body", 200, b"body"),
        (OK + b"Content-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody", 200, b"body"),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + SIZED + b"body",
            200,
            b"body",
        ),
        (CHUNKED + b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", 200, b"body"),
        (CHUNKED + b"4;name=value\r\nbody\r\n0\r\nTrailer: late\r\n\r\n", 200, b"body"),
        (b"HTTP/1.1 503 Loading\r\nContent-Length: 4\r\n\r\nbody", 503, b"body"),
    ],
    ids=["sized", "empty", "204", "http-1.0", "interim", "chunked", "extension-and-trailer", "error"],
)
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "byte by byte"])
async def test_a_response_ends_where_http_says_so_and_the_server_need_not_close(
    getter, answer, status, body, whole
):
    pieces = [answer] if whole else [answer[at : at + 1] for at in range(len(answer))]
    async with hostile(sends(*pieces)) as server:
        response = await getter(server.endpoint)
        assert (response.status, response.body) == (status, body)
        assert not {b"trailer", b"link"} & {name for name, _ in response.headers}
        await asyncio.wait_for(server.closed.wait(), DEADLINE_S)


async def test_a_response_without_a_length_ends_with_the_connection(getter):
    async with hostile(sends(b"HTTP/1.0 200 OK\r\n\r\n", b"all of ", b"it", close=True)) as server:
        assert (await getter(server.endpoint)).body == b"all of it"


async def test_bytes_after_the_response_are_dropped(getter):
    async with hostile(sends(SIZED + b"body and more")) as server:
        assert (await getter(server.endpoint)).body == b"body"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (sends(close=True), "closed the connection"),
        (sends(b"HTTP/1.1 20", close=True), "closed the connection"),
        (sends(SIZED + b"bo", close=True), "closed the connection"),
        (sends(CHUNKED + b"4\r\nbo", close=True), "closed the connection"),
        (sends(CHUNKED + b"4\r\nbody\r\n", close=True), "closed the connection"),
        (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "not HTTP"),
        (sends(CHUNKED + b"xyz\r\n"), "not HTTP"),
        (sends(CHUNKED + b"-1\r\n"), "not HTTP"),
        (sends(CHUNKED + b"ffffffffffffffffff\r\n"), "not HTTP"),
        (sends(OK + b"Content-Length: 4x\r\n\r\n"), "not HTTP"),
        (sends(OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody"), "not HTTP"),
        (sends(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), "not HTTP"),
        (sends_for_ever(OK, b"X-Name: value\r\n"), "head without end"),
        (sends_for_ever(OK + b"X-Name: ", b"x" * 1000), "head without end"),
        (sends_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "head without end"),
        (sends_for_ever(CHUNKED + b"4;name=", b"x" * 1000), "head without end"),
        (sends_for_ever(CHUNKED + b"0\r\n", b"X-Trailer: value\r\n"), "head without end"),
    ],
    ids=[
        "nothing",
        "half a head",
        "short body",
        "half a chunk",
        "no last chunk",
        "ssh",
        "chunk size of letters",
        "negative chunk size",
        "huge chunk size",
        "length of letters",
        "two lengths",
        "upgrade",
        "endless headers",
        "endless header",
        "endless interim responses",
        "endless chunk extension",
        "endless trailers",
    ],
)
async def test_a_response_that_is_wrong_or_never_ends_is_an_error(getter, script, why):
    async with hostile(script) as server:
        with pytest.raises(ResponseBroken, match=why):
            await getter(server.endpoint)


@pytest.mark.parametrize("head", [SIZED, CHUNKED, OK + b"\r\n"], ids=["sized", "chunked", "unsized"])
async def test_a_connection_that_is_reset_within_a_body_is_an_error(getter, head):
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"2\r\n")
        await writer.drain()
        linger = writer.get_extra_info("socket")
        # Closing sends a reset, since nothing is waited for.
        linger.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with hostile(script) as server:
        with pytest.raises(ResponseBroken, match="reset the connection"):
            await getter(server.endpoint)


async def test_what_is_not_http_is_told_from_what_breaks_off():
    async with hostile(sends(b"220 smtp ready\r\n")) as server:
        with pytest.raises(NotHttp):
            await get(server.endpoint)


async def test_an_endless_body_is_cut_at_its_limit():
    async with hostile(sends_for_ever(OK + b"\r\n", b"x" * 1000)) as server:
        with pytest.raises(ResponseBroken, match="longer than 5000 bytes"):
            await fetch(Request(server.endpoint, "GET", "/"), Limits(body_bytes=5000))
        await asyncio.wait_for(server.closed.wait(), DEADLINE_S)


async def test_an_endless_body_that_nobody_takes_stops_the_server():
    async with hostile(sends_for_ever(OK + b"\r\n", b"x" * 1000)) as server:
        connection = await Pool().connect(server.endpoint)
        connection.begin(REQUEST, b"")
        await until(lambda: not connection._transport.is_reading())
        assert len(connection.take()) < 1 << 20
        assert connection._transport.is_reading()
        connection.abort()


class TestSilence:
    """Short limits against a server that says nothing: no outcome depends on the machine's speed."""

    @pytest.mark.parametrize(
        ("sent", "limits", "why"),
        [
            ((), Limits(head_s=SHORT_S), "no response"),
            ((OK,), Limits(head_s=SHORT_S), "no response"),
            ((SIZED,), Limits(silence_s=SHORT_S), "no more of the response"),
            ((SIZED, b"bod"), Limits(silence_s=SHORT_S), "no more of the response"),
            ((SIZED, b"bod"), Limits(whole_s=SHORT_S), "within 0.0"),
        ],
        ids=["before the head", "within the head", "before the body", "within the body", "whole"],
    )
    async def test_each_step_has_a_limit(self, sent, limits, why):
        async with hostile(sends(*sent)) as server:
            with pytest.raises(TimeoutError, match=why):
                await fetch(Request(server.endpoint, "GET", "/"), limits)
            await asyncio.wait_for(server.closed.wait(), DEADLINE_S)

    async def test_a_body_that_drips_ends_with_the_limit_for_the_whole(self):
        async with hostile(sends_for_ever(OK + b"\r\n", b"x")) as server:
            with pytest.raises(TimeoutError):
                await fetch(
                    Request(server.endpoint, "GET", "/"), Limits(silence_s=DEADLINE_S, whole_s=SHORT_S)
                )

    async def test_a_tls_handshake_without_an_answer_ends_with_the_limit_for_connecting(self):
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        listening = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with listening:
            endpoint = Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1], tls=True)
            with pytest.raises(TimeoutError, match="no connection"):
                await fetch(Request(endpoint, "GET", "/"), Limits(connect_s=SHORT_S))


class TestTls:
    def server_side(self, certificate) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        return context

    async def test_a_trusted_server_is_read(self, tmp_path, monkeypatch):
        authority = Authority.made(tmp_path)
        trusting = ssl.create_default_context(cafile=str(authority.certificate))
        monkeypatch.setattr(connection_module, "client_context", lambda ca: trusting)
        tls = self.server_side(authority.signed("server"))
        async with hostile(sends(SIZED + b"body"), tls) as server:
            assert (await get(server.endpoint)).body == b"body"
            assert await tls_problem(server.endpoint, timeout_s=DEADLINE_S) is None

    async def test_a_self_signed_server_is_refused(self, tmp_path, getter):
        async with hostile(sends(SIZED + b"body"), self.server_side(self_signed(tmp_path))) as server:
            with pytest.raises((OSError, UpstreamFailed), match="certificate"):
                await getter(server.endpoint)
            problem = await tls_problem(server.endpoint, timeout_s=DEADLINE_S)
            assert str(problem).startswith("its certificate is not trusted")
            assert server.requests == []

    async def test_a_server_without_tls_is_a_problem_of_tls(self):
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()
            writer.close()

        async with await asyncio.start_server(plain, "127.0.0.1", 0) as listening:
            endpoint = Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1], tls=True)
            assert "TLS" in str(await tls_problem(endpoint, timeout_s=DEADLINE_S))


class TestProbe:
    async def test_a_server_that_keeps_the_connection_open_answers_at_once(self):
        async with hostile(sends(SIZED + b"body")) as server:
            response = await probe(server.endpoint, "/health", timeout_s=DEADLINE_S)
            assert response is not None
            assert (response.status, response.body) == (200, b"body")

    @pytest.mark.parametrize("script", [sends(), sends(b"nonsense\r\n"), sends(SIZED, close=True)])
    async def test_no_whole_response_is_none(self, script):
        async with hostile(script) as server:
            assert await probe(server.endpoint, "/health", timeout_s=SHORT_S) is None

    async def test_nobody_there_is_none(self):
        assert await probe(Endpoint("127.0.0.1", 1), "/health", timeout_s=DEADLINE_S) is None

    async def test_a_payload_is_posted_with_the_key_under_the_prefix(self):
        async with hostile(sends(SIZED + b"{  }")) as server:
            there = Endpoint("127.0.0.1", server.endpoint.port, prefix="/far", key="secret")
            response = await probe(there, "/sleep", {"level": 1}, timeout_s=DEADLINE_S)
        assert response is not None
        assert response.json_object() == {}
        (head,) = server.requests
        assert head.startswith(b"POST /far/sleep HTTP/1.1\r\n")
        assert b"Authorization: Bearer secret\r\n" in head
        assert b"Content-Length: 12\r\n" in head


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/ä"])
async def test_a_path_that_would_break_the_request_is_refused(path):
    with pytest.raises(ValueError, match="characters"):
        Request(Endpoint("127.0.0.1", 1), "GET", path).encoded()


async def test_an_exchange_that_is_left_unread_closes_its_connection():
    async with hostile(sends_for_ever(OK + b"\r\n", b"x" * 1000)) as server:
        with closing(await Exchange.connect(server.endpoint, Limits())) as exchange:
            await exchange.send(Request(server.endpoint, "GET", "/"))
            assert await exchange.read()
        await asyncio.wait_for(server.closed.wait(), DEADLINE_S)


def redirects(server_of: Callable[[], HostileServer], *targets: str) -> Script:
    left = list(targets)

    async def script(writer: asyncio.StreamWriter) -> None:
        if left:
            location = left.pop(0).format(port=server_of().endpoint.port).encode()
            writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
        else:
            writer.write(SIZED + b"body")

    return script


async def test_a_url_is_followed_to_where_it_points():
    async with hostile(redirects(lambda: server, "other?a=b", "http://127.0.0.1:{port}/last")) as server:
        response = await get_url(f"http://127.0.0.1:{server.endpoint.port}/first", Limits())
    assert response.body == b"body"
    paths = [request.split(b" ")[1] for request in server.requests]
    assert paths == [b"/first", b"/other?a=b", b"/last"]


async def test_endless_redirects_and_other_schemes_end():
    async with hostile(redirects(lambda: server, *["/"] * 9)) as server:
        with pytest.raises(ResponseBroken, match="redirects"):
            await get_url(f"http://127.0.0.1:{server.endpoint.port}", Limits())
    async with hostile(redirects(lambda: server, "file:///etc/passwd")) as server:
        with pytest.raises(ValueError, match="not an address"):
            await get_url(f"http://127.0.0.1:{server.endpoint.port}", Limits())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_refused_connection_is_described_in_a_few_words(host):
    with pytest.raises(OSError, match="Connect") as caught:
        await get(Endpoint(host, 1))
    assert describe(caught.value) == "Connection refused"


def test_addresses_of_apis():
    assert api_endpoint("https://far.example/x/v1/", "k") == Endpoint(
        "far.example", 443, tls=True, prefix="/x", key="k"
    )
    for bad in ("far.example", "ftp://far", "http://far?x=y", "http://far/a b", "http://fär/"):
        with pytest.raises(ValueError, match="address"):
            api_endpoint(bad)
    with pytest.raises(ValueError, match="key"):
        api_endpoint("http://far", "a\nb")


async def test_the_blocking_form_reads_whole_and_streamed_responses():
    def read(endpoint: Endpoint) -> tuple[bytes, list[bytes]]:
        request, limits = Request(endpoint, "GET", "/"), Limits(DEADLINE_S)
        with blocking.opened(request, limits) as (status, pieces):
            assert status == 200
            return blocking.fetch(request, limits).body, list(pieces)

    async with hostile(sends(CHUNKED, b"2\r\nbo\r\n", b"2\r\ndy\r\n", b"0\r\n\r\n")) as server:
        whole, pieces = await asyncio.to_thread(read, server.endpoint)
    assert whole == b"".join(pieces) == b"body"
