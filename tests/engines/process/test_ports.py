import contextlib
import os
import socket
import subprocess
import sys

import pytest

from cotenant.engines.process.ports import LOOPBACK, ReservedPort


@pytest.mark.parametrize("option", [socket.SO_REUSEPORT, socket.SO_REUSEADDR])
def test_an_engine_can_listen_on_a_reserved_port(option: int) -> None:
    with ReservedPort() as port, socket.socket() as engine:
        engine.setsockopt(socket.SOL_SOCKET, option, 1)
        engine.bind((LOOPBACK, port.number))
        engine.listen()
        for _ in range(20):
            with socket.create_connection((LOOPBACK, port.number), timeout=60):
                pass


def test_nobody_is_listening_before_the_engine_does() -> None:
    with ReservedPort() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port.number), timeout=60)


def test_a_program_that_does_not_share_cannot_take_it() -> None:
    with ReservedPort() as port, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((LOOPBACK, port.number))


def test_reserved_ports_differ() -> None:
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(ReservedPort()).number for _ in range(100)]
    assert len(set(ports)) == 100


def test_an_engine_of_another_user_can_listen_once_it_is_admitted() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    listening = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "engine = socket.socket()\n"
        "engine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "engine.bind(('127.0.0.1', int(sys.argv[1])))\n"
    )
    with ReservedPort() as port:
        command = [sys.executable, "-I", "-S", "-c", listening, str(port.number)]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
        port.admit(65534)
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
