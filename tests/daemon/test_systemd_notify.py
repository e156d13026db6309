"""What systemd is told, over a real datagram socket, as systemd gives one."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.daemon.systemd_notify import ServiceManager
from tests.support.daemon.serving import Serving
from tests.support.models.gguf_models import build_tiny_llama


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


def test_states_arrive_and_the_variables_are_gone(systemd: socket.socket, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "HOME": "/x"}
    manager = ServiceManager(environment)

    manager.ready("Serving")
    manager.stopping()

    assert systemd.recv(4096) == b"READY=1\nSTATUS=Serving"
    assert systemd.recv(4096).startswith(b"STOPPING=1")
    assert environment == {"HOME": "/x"}


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"cotenant-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        listening.settimeout(60)
        assert listening.recv(4096).startswith(b"STOPPING=1")


async def test_the_watchdog_is_fed_well_within_its_time(systemd: socket.socket, tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000"})
    feeding = asyncio.create_task(manager.keep_alive())
    try:
        for _ in range(3):
            assert await asyncio.to_thread(systemd.recv, 4096) == b"WATCHDOG=1"
    finally:
        feeding.cancel()


@pytest.mark.parametrize(
    ("period", "pid", "seconds"),
    [("60000000", "", 60.0), ("60000000", "1", None), ("0", "", None), ("soon", "", None), ("", "", None)],
)
def test_the_watchdog_is_this_process_s_alone(period: str, pid: str, seconds: float | None) -> None:
    assert ServiceManager({"WATCHDOG_USEC": period, "WATCHDOG_PID": pid}).watchdog_s == seconds


def test_without_a_service_manager_nothing_is_said_and_nothing_waits() -> None:
    manager = ServiceManager({})
    manager.ready("Serving")
    asyncio.run(manager.keep_alive())


def test_a_service_manager_that_is_gone_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("Serving")
    assert "could not be sent to systemd" in caplog.text


@pytest.mark.slow
def test_a_daemon_under_systemd_tells_when_it_is_ready_reloads_and_stops(
    systemd: socket.socket, tmp_path: Path
) -> None:
    build_tiny_llama(tmp_path / "tiny.gguf")
    (tmp_path / "cotenant.yaml").write_text(
        "server: {port: 0}\ndevices: {gpus: 8GiB}\nmodels: [{path: tiny.gguf}]\n"
    )
    told: list[str] = []

    def next_state() -> str:
        while (state := systemd.recv(4096).decode()) == "WATCHDOG=1":
            told.append(state)
        return state

    argv = ["serve", "--config", str(tmp_path / "cotenant.yaml")]
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    with Serving(argv, tmp_path / "state", env) as daemon:
        assert next_state().startswith("READY=1\nSTATUS=Serving 1 model")
        daemon.process.send_signal(signal.SIGHUP)
        assert next_state().startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert next_state().startswith("READY=1")
        while not told:
            told.append(systemd.recv(4096).decode())
        assert daemon.terminate() == 0
        assert next_state().startswith("STOPPING=1")
    assert set(told) == {"WATCHDOG=1"}
