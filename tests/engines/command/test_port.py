"""Whose port it is: an engine is ready once it listens itself, and only it gets requests."""

import asyncio
import os
import socket
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineOptions
from cotenant.domain.errors import EngineLoadFailed, EngineLoadTimeout
from cotenant.domain.exit_causes import Cause
from cotenant.engines.command.engine import CommandEngine, CommandHost
from cotenant.http.client import probe, probe_ok
from cotenant.interfaces import EngineOrder
from tests.engines.contract import inputs, of_kind, running
from tests.support.engines.orders import host_order
from tests.support.waiting import until

# Binds without SO_REUSEADDR once the file exists; the status of its answers is its third argument.
PLAIN = """
import http.server, os, socketserver, sys, time
port, once, status = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
class H(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        key = os.environ.get("THE_KEY")
        refused = key and self.headers["Authorization"] != f"Bearer {key}"
        self.send_response(401 if refused else status)
        self.end_headers()
socketserver.TCPServer.allow_reuse_address = "REUSE" in os.environ
while not os.path.exists(once): time.sleep(0.01)
socketserver.ThreadingTCPServer(("127.0.0.1", port), H).serve_forever()
"""


def ordered(once: Path, status: int = 200) -> EngineOrder:
    argv = (sys.executable, "-I", "-S", "-c", textwrap.dedent(PLAIN), "{port}", str(once), str(status))
    options = EngineOptions(command=argv, health_path="/health")
    return of_kind(replace(host_order(Path("-")), model_path=None), EngineKind.COMMAND, options)


@pytest.fixture
def once(tmp_path: Path) -> Path:
    (tmp_path / "once").touch()
    return tmp_path / "once"


async def test_a_program_that_shares_no_port_can_be_an_engine(once: Path, tmp_path: Path) -> None:
    async with running(CommandHost(inputs(tmp_path)), ordered(once)) as engine:
        assert await probe_ok(engine.endpoint, "/", timeout_s=60) is not None
        assert engine.endpoint.listeners


async def test_whoever_listens_on_its_port_first_is_not_taken_for_it(tmp_path: Path) -> None:
    engine = await CommandHost(inputs(tmp_path)).start(ordered(tmp_path / "never"))
    with socket.create_server(("127.0.0.1", engine.endpoint.port)) as thief:
        with pytest.raises(EngineLoadFailed, match=f"of user {os.geteuid()}, listens on its port") as raised:
            await engine.wait_ready(60)
        assert raised.value.cause is Cause.PORT_IN_USE
        thief.settimeout(0)
        with pytest.raises(BlockingIOError):
            thief.accept()


async def test_a_program_that_restarts_its_server_is_followed(once: Path, tmp_path: Path) -> None:
    order = ordered(once)
    again = ("/bin/sh", "-c", 'while :; do "$@" & echo $! > "$0"; wait $!; done', str(tmp_path / "pid"))
    options = replace(order.options, command=(*again, *order.options.command))
    order = replace(order, options=options, env={"REUSE": "1"})
    async with running(CommandHost(inputs(tmp_path)), order) as engine:
        first = engine.endpoint
        os.kill(int((tmp_path / "pid").read_text()), 9)
        await until(lambda: engine.endpoint.listeners != first.listeners)
        assert await probe_ok(engine.endpoint, "/", timeout_s=60) is not None


async def test_a_key_in_its_environment_is_sent_to_it(once: Path, tmp_path: Path) -> None:
    order = replace(ordered(once), env={"THE_KEY": "{key}"})
    async with running(CommandHost(inputs(tmp_path)), order) as engine:
        assert await probe_ok(engine.endpoint, "/", timeout_s=60) is not None
        nobody = await probe(replace(engine.endpoint, key=None), "/", timeout_s=60)
        assert nobody is not None
        assert nobody.status == 401


async def test_a_health_path_that_it_does_not_have_is_told_soon(
    once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CommandEngine, "NO_HEALTH_AFTER_S", 0.0)
    engine = await CommandHost(inputs(tmp_path)).start(ordered(once, 404))
    with pytest.raises(EngineLoadFailed, match="it answers 404 at /health") as raised:
        await engine.wait_ready(600)
    assert "Set `health:`" in (raised.value.hint or "")
    assert engine.ended


async def test_what_a_server_that_never_is_ready_answers_is_told(once: Path, tmp_path: Path) -> None:
    engine = await CommandHost(inputs(tmp_path)).start(ordered(once, 503))
    waiting = asyncio.create_task(engine.wait_ready(5))
    with pytest.raises(EngineLoadTimeout, match="it answers 503 at /health"):
        await waiting
