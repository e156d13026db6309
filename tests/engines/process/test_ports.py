import contextlib
import os
import socket
import subprocess
import sys

import pytest

from cotenant.engines.process.ports import LOOPBACK, ReservedPort


def test_an_engine_can_listen_on_a_reserved_port() -> None:
    with ReservedPort() as port, socket.socket() as engine:
        engine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        engine.bind((LOOPBACK, port.number))
        engine.listen()
        for _ in range(20):
            with socket.create_connection((LOOPBACK, port.number), timeout=60):
                pass


def test_nobody_is_listening_before_the_engine_does() -> None:
    with ReservedPort() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port.number), timeout=60)


@pytest.mark.parametrize("option", [socket.SO_KEEPALIVE, socket.SO_REUSEADDR])
def test_a_program_that_does_not_share_cannot_take_it_until_it_is_let_go(option: int) -> None:
    with ReservedPort() as port, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((LOOPBACK, port.number))
        port.let_go()
        other.bind((LOOPBACK, port.number))


@pytest.mark.parametrize("let_go", [False, True])
def test_reserved_ports_differ(let_go: bool) -> None:
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(ReservedPort()) for _ in range(50)]
        for port in ports if let_go else ():
            port.let_go()
        ports += [stack.enter_context(ReservedPort()) for _ in range(50)]
        assert len({port.number for port in ports}) == 100


def test_no_other_user_can_listen_on_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    stealing = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "thief = socket.socket()\n"
        "thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(sys.argv[2]))\n"
        "thief.bind(('127.0.0.1', int(sys.argv[1])))\n"
    )
    with ReservedPort() as port:
        for share in "01":
            command = [sys.executable, "-I", "-S", "-c", stealing, str(port.number), share]
            assert subprocess.run(command, capture_output=True, check=False).returncode != 0


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
