"""The way from an engine to a part of its model on another machine: a port here and the gate there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cotenant.agent import forwarder as forwarder_module
from cotenant.agent.forwarder import Forwarder
from cotenant.agent.gate import Gate
from cotenant.domain.engines import Endpoint, RemotePart
from tests.agent.test_gate import engine, gate
from tests.support.http.tls_server import Authority
from tests.support.waiting import until


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def way_to(made: Gate, token: str, authorities: str = "") -> AsyncIterator[tuple[Forwarder, Endpoint]]:
    assert made.address is not None
    tls = made.address.tls
    through = Endpoint(made.address.address, made.address.port, tls=tls, gate=token)
    forwarder = Forwarder(RemotePart("c", "1", through, authorities))
    try:
        yield forwarder, await forwarder.open()
    finally:
        forwarder.close()
        await until(lambda: not forwarder.open_ends)


async def sent_back(here: Endpoint, data: bytes) -> bytes:
    """What comes back of what is sent; empty if the connection is cut."""
    reader, writer = await asyncio.open_connection(here.host, here.port)
    try:
        writer.write(data)
        async with asyncio.timeout(60):
            return await reader.readexactly(len(data))
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()


async def test_bytes_pass_both_ways_on_several_connections() -> None:
    data = bytes(range(256)) * 20_000
    async with engine(echoes) as there, gate() as made:
        made.admit("token", there)
        async with way_to(made, "token") as (_, here):
            assert here.host == "127.0.0.1"
            found = await asyncio.gather(*(sent_back(here, data[each:]) for each in range(3)))
            assert found == [data[each:] for each in range(3)]


async def test_a_connection_ends_on_both_sides_however_it_ends() -> None:
    async with engine(echoes) as there, gate() as made:
        made.admit("token", there)
        async with way_to(made, "token") as (_, here):
            reader, writer = await asyncio.open_connection(here.host, here.port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            made.expel("token")
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            writer.close()
            assert await sent_back(here, b"hello") == b"", "the gate knows its token no more"


async def test_with_certificates_it_trusts_only_who_the_authority_vouches_for(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    certificate, key = authority.signed("server")
    async with engine(echoes) as there, gate(certificate=certificate, key=key) as made:
        made.admit("token", there)
        async with way_to(made, "token", authority.certificate.read_text()) as (_, here):
            assert await sent_back(here, b"hello") == b"hello"
        async with way_to(made, "token") as (_, here):
            assert await sent_back(here, b"hello") == b""


async def test_only_processes_of_this_user_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(echoes) as there, gate() as made:
        made.admit("token", there)
        async with way_to(made, "token") as (_, here):
            assert await sent_back(here, b"hello") == b"hello"
            monkeypatch.setattr(forwarder_module.os, "getuid", lambda: -1)
            assert await sent_back(here, b"hello") == b""
