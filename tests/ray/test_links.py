"""A connection to a machine whose network is gone: neither end hears of it."""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.inference.engine_connections import EngineConnection, Pool
from tests.support.nodes.machines import cutting_needs_namespaces, machines
from tests.support.waiting import until, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]

_SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
kept = []
while True:
    client = server.accept()[0]
    kept.append(client)
    while not client.recv(4096).endswith(b"x"):
        pass
    print("asked", flush=True)
"""
"""Reads a request and answers nothing."""


async def _answer(connection: EngineConnection) -> None:
    while connection.status is None:
        await connection.more()


@pytest.mark.parametrize("cut_first", [False, True], ids=["while it waits", "before it is asked"])
async def test_a_connection_that_nobody_will_ever_answer_ends_and_says_so(cut_first: bool) -> None:
    cutting_needs_namespaces()
    with (
        tempfile.TemporaryDirectory(prefix="ct") as folder,
        machines(Path(folder), ("h",)) as made,
        contextlib.ExitStack() as stack,
    ):
        (machine,) = made.values()
        log = Path(folder) / "log"
        server = machine.start([sys.executable, "-c", _SERVER, machine.address], {**os.environ}, log)
        stack.callback(server.wait)
        stack.callback(server.kill)
        wait_until(lambda: log.exists() and log.read_text())
        pool = Pool()
        connection = await pool.connect(Endpoint(machine.address, int(log.read_text()), gate="t"))
        if cut_first:
            machine.cut()
        connection.begin(b"x", b"")
        if not cut_first:
            await until(lambda: "asked" in log.read_text())
            machine.cut()
        began = time.monotonic()
        with pytest.raises(UpstreamFailed):
            await _answer(connection)
        print(f"T9: a half-open connection ended after {time.monotonic() - began:.1f} s")
        assert connection.lost
