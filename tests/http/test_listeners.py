import asyncio
import os
import socket
from dataclasses import replace

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.gateway.inference.engine_connections import Pool
from cotenant.http import listeners
from cotenant.http.client import probe
from cotenant.http.listeners import PortTaken, listener_inode, listening_sockets, verify_listener


@pytest.fixture(params=["netlink", "tables"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "tables":
        monkeypatch.setattr(listeners, "_netlink", lambda: None)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_the_socket_that_a_connection_reaches_is_named(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        inode = os.fstat(server.fileno()).st_ino
        assert listener_inode("127.0.0.1", port) == inode
        assert (inode, os.geteuid()) in listening_sockets(port)
        with socket.create_connection(("127.0.0.1", port)):
            assert listener_inode("127.0.0.1", port) == inode
    assert listener_inode("127.0.0.1", port) is None


@pytest.mark.usefixtures("way")
def test_all_that_listen_on_a_port_are_listed_and_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        expected = {(os.fstat(server.fileno()).st_ino, os.geteuid())}
        with (
            socket.create_server(("127.0.0.2", port)) as second,
            socket.create_connection(("127.0.0.1", port)),
        ):
            assert {*listening_sockets(port)} == {*expected, (os.fstat(second.fileno()).st_ino, os.geteuid())}
        if socket.has_ipv6:
            with socket.create_server(("::1", port), family=socket.AF_INET6) as sixth:
                expected.add((os.fstat(sixth.fileno()).st_ino, os.geteuid()))
                assert {*listening_sockets(port)} == expected
    assert not [*listening_sockets(port)]


def test_a_port_that_changed_hands_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = os.fstat(server.fileno()).st_ino
        endpoint = Endpoint(*server.getsockname(), listeners=frozenset({inode}))
        verify_listener(endpoint)
        verify_listener(replace(endpoint, listeners=frozenset()))
        with pytest.raises(PortTaken):
            verify_listener(replace(endpoint, listeners=frozenset({inode + 1})))
    with pytest.raises(PortTaken):
        verify_listener(endpoint)


async def test_nothing_is_sent_to_a_port_that_changed_hands() -> None:
    with socket.create_server(("127.0.0.1", 0)) as thief:
        endpoint = Endpoint(*thief.getsockname(), key="k", listeners=frozenset({1}))
        assert await probe(endpoint, "/health", timeout_s=60) is None
        with pytest.raises(Exception, match="another process has its port"):
            await Pool().connect(endpoint)
        assert [await asyncio.to_thread(_first_bytes, thief) for _ in range(2)] == [b"", b""]


def _first_bytes(server: socket.socket) -> bytes:
    connection, _ = server.accept()
    with connection:
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""
