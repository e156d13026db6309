"""The port by which requests reach the engines of a machine."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cotenant.agent.gate import Gate
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting, InsecureBind, PortTaken, UpstreamFailed
from cotenant.gateway.inference.engine_connections import Pool
from cotenant.nodes.messages import GateSettings
from tests.support.http.tls_server import Authority
from tests.support.waiting import until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"


@contextlib.asynccontextmanager
async def engine(serve: Serve) -> AsyncIterator[Endpoint]:
    """A server on the loopback address."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])


@contextlib.asynccontextmanager
async def gate(**settings: object) -> AsyncIterator[Gate]:
    shut = False
    made = Gate(lambda: shut)
    await made.open(GateSettings("127.0.0.1", **settings))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()
        await until(lambda: not made.clients)


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(ANSWER)
    writer.close()


def behind(made: Gate, token: str) -> tuple[str, int, bytes]:
    assert made.address is not None
    return made.address.address, made.address.port, f"{token}\n".encode()


async def told(made: Gate, first: bytes) -> bytes:
    """What a client that sends this is sent, to the end."""
    host, port, _ = behind(made, "")
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                return await reader.read()
        return b"reset"
    finally:
        writer.close()


async def test_requests_of_the_gateway_pass_and_the_connection_is_kept() -> None:
    async with engine(answers) as there, gate() as made:
        made.admit("token", there)
        host, port, _ = behind(made, "token")
        pool, through = Pool(), Endpoint(host, port, gate="token")
        for _ in range(2):
            connection = pool.idle(through) or await pool.connect(through)
            connection.begin(b"GET / HTTP/1.1\r\n\r\n", b"")
            while not connection.ended:
                await connection.more()
            assert connection.take() == b"body"
            pool.give_back(connection)
        assert pool.idle(through) is connection
        pool.close()


@pytest.mark.parametrize("first", [b"wrong\n", b"\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 4096, b"toke\n"])
async def test_whoever_has_no_token_is_cut_off_without_a_word(first: bytes) -> None:
    async with engine(answers) as there, gate() as made:
        made.admit("token", there)
        assert await told(made, first) == b"reset"
        assert made.strangers == 0


async def test_a_token_is_good_until_the_engine_has_gone_and_then_cuts_who_is_in() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with engine(silent) as there, gate() as made:
        made.admit("token", there)
        waiting = asyncio.create_task(told(made, b"token\nhello"))
        await until(lambda: made.clients and not made.strangers)
        made.expel("token")
        assert await waiting == b"reset"
        assert await told(made, b"token\n") == b"reset"


async def test_what_is_sent_before_a_clean_end_arrives_and_a_broken_one_is_no_clean_end() -> None:
    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        writer.write(b"x" * 3_000_000)
        if asked == b"break\n":
            await writer.drain()
            writer.transport.abort()
        writer.close()

    async with engine(ends) as there, gate() as made:
        made.admit("token", there)
        assert len(await told(made, b"token\nend\n")) == 3_000_000


async def test_a_client_that_reads_nothing_holds_the_engine_back() -> None:
    sent = 0

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536

    async with engine(floods) as there, gate() as made:
        made.admit("token", there)
        host, port, token = behind(made, "token")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(token + b"go\n")
        await until(lambda: sent)
        held = -1
        while held != sent:
            held = sent
            await asyncio.sleep(0.3)
        # What the sockets and buffers hold on the way, and no more.
        assert sent < 64 << 20
        async with asyncio.timeout(60):
            while sent == held:
                await reader.read(1 << 20)
        writer.transport.abort()


async def test_an_engine_that_is_gone_cuts_the_client_off() -> None:
    async with gate() as made:
        made.admit("token", Endpoint("127.0.0.1", 1))
        assert await told(made, b"token\nhello") == b"reset"


async def test_only_the_engines_own_socket_is_passed_to() -> None:
    async with engine(answers) as there, gate() as made:
        made.admit("token", Endpoint(there.host, there.port, listeners=frozenset({1})))
        assert await told(made, b"token\nGET / HTTP/1.1\r\n\r\n") == b"reset"


async def test_with_certificates_the_gate_speaks_tls_to_who_trusts_its_authority(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    certificate, key = authority.signed("server")
    async with engine(answers) as there, gate(certificate=certificate, key=key) as made:
        made.admit("token", there)
        assert made.address is not None
        assert made.address.tls
        ca = str(authority.certificate)
        through = Endpoint("127.0.0.1", made.address.port, tls=True, gate="token", ca=ca)
        pool = Pool()
        connection = await pool.connect(through)
        connection.begin(b"GET / HTTP/1.1\r\n\r\n", b"")
        while not connection.ended:
            await connection.more()
        assert connection.take() == b"body"
        with pytest.raises(UpstreamFailed, match="not trusted"):
            await pool.connect(Endpoint("127.0.0.1", made.address.port, tls=True, gate="token"))
        connection.abort()


async def test_a_certificate_that_has_expired_is_said_and_no_request_is_sent(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    certificate, key = authority.expired()
    async with engine(answers) as there, gate(certificate=certificate, key=key) as made:
        made.admit("token", there)
        assert made.address is not None
        ca = str(authority.certificate)
        with pytest.raises(UpstreamFailed, match="its certificate is not trusted: certificate has expired"):
            await Pool().connect(Endpoint("127.0.0.1", made.address.port, tls=True, gate="token", ca=ca))
        await until(lambda: not made.clients)


async def test_over_a_slow_link_requests_pass_and_the_next_one_pays_for_no_connection() -> None:
    way_s = 0.1

    async with engine(answers) as there, gate() as made:
        made.admit("token", there)
        host, port, _ = behind(made, "token")
        opened = 0

        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                await asyncio.sleep(way_s)
                writer.write(data)
            writer.close()

        async def passes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal opened
            opened += 1
            far_reader, far_writer = await asyncio.open_connection(host, port)
            await asyncio.gather(late(reader, far_writer), late(far_reader, writer))

        async with engine(passes) as slow:
            pool, through = Pool(), Endpoint(slow.host, slow.port, gate="token")
            for _ in range(3):
                connection = pool.idle(through) or await pool.connect(through)
                connection.begin(b"GET / HTTP/1.1\r\n\r\n", b"")
                while not connection.ended:
                    await connection.more()
                assert connection.take() == b"body"
                pool.give_back(connection)
            assert opened == 1
            pool.close()


async def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    made = Gate(lambda: False)
    for address in ("0.0.0.0", "8.8.8.8", "::"):
        with pytest.raises(InsecureBind, match=r"without TLS"):
            await made.open(GateSettings(address))
    with pytest.raises(BadSetting, match="no address"):
        await made.open(GateSettings("nowhere"))
    with pytest.raises(BadSetting, match="cannot be used: No such file"):
        await made.open(GateSettings("127.0.0.1", 0, tmp_path / "none.pem", tmp_path / "none.key"))
    async with engine(answers) as there:
        with pytest.raises(PortTaken, match=str(there.port)):
            await made.open(GateSettings("127.0.0.1", there.port))
    assert made.address is None


async def test_it_opens_anew_at_its_port_with_other_settings_and_connections_stay(tmp_path: Path) -> None:
    certificate, key = Authority.made(tmp_path).signed("server")
    async with engine(answers) as there, gate() as made:
        made.admit("token", there)
        host, port, token = behind(made, "token")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(token)
        await until(lambda: made.clients and not made.strangers)
        await made.open(GateSettings(host, port, certificate, key))
        assert made.address is not None
        assert (made.address.port, made.address.tls) == (port, True)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(60):
            assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.close()


async def test_one_that_cannot_open_as_asked_stays_as_it_was(tmp_path: Path) -> None:
    async with engine(answers) as there, gate() as made:
        host, port, _ = behind(made, "")
        for settings in (
            GateSettings(host, there.port),
            GateSettings(host, port, tmp_path / "none.pem", tmp_path / "none.key"),
            # One that has to close its port first, for an address that is none of this machine.
            GateSettings("10.255.255.254", port),
        ):
            with pytest.raises((PortTaken, BadSetting)):
                await made.open(settings)
            assert made.address is not None
            assert (made.address.port, made.address.tls) == (port, False)
            assert await told(made, b"wrong\n") == b"reset"


async def test_a_certificate_that_was_renewed_is_used_for_the_next_connections(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    certificate, key = authority.signed("server")
    renewed, its_key = authority.signed("renewed")
    async with gate(certificate=certificate, key=key) as made:
        assert made.address is not None
        settings = GateSettings("127.0.0.1", 0, certificate, key)

        async def subject() -> str:
            host, port, _ = behind(made, "")
            context = ssl.create_default_context(cafile=authority.certificate)
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                return str(writer.get_extra_info("peercert")["subject"])
            finally:
                writer.close()

        assert "server" in await subject()
        renewed.replace(certificate)
        its_key.replace(key)
        await made.open(settings)
        assert "renewed" in await subject()
