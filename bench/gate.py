"""What the gate of another machine adds to a request, beside the same request straight to the engine's port.

Three processes: a server that answers at once, the gate before it, and a client that asks both in turns over
connections that are kept, as the gateway does.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from tests.support.http.tls_server import Authority

from bench.rows import Row, print_table
from cotenant.agent.gate import Gate
from cotenant.domain.engines import Endpoint
from cotenant.http.connection import Connection
from cotenant.nodes.messages import GateSettings

_TOKEN = "a-token-of-thirty-two-characters"
_ROUNDS = 4_000
_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 300\r\n\r\n" + b"x" * 300
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n" + b"y" * 500
_TARGET_US = 200


def main() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.made(Path(folder))
        return uvloop.run(_measure(authority))


class _Engine(asyncio.Protocol):
    def __init__(self) -> None:
        self._seen = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += len(data)
        while self._seen >= len(_REQUEST):
            self._seen -= len(_REQUEST)
            self._transport.write(_ANSWER)  # type: ignore[attr-defined]


async def _measure(authority: Authority) -> list[Row]:
    certificate, key = authority.signed("server")
    processes: list[subprocess.Popen[str]] = []

    def started(*argv: object) -> int:
        command = [sys.executable, "-m", "bench.gate", *map(str, argv)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    try:
        engine = started("engine")
        plain, tls = started("gate", engine), started("gate", engine, certificate, key)
        ways = {
            "direct": Endpoint("127.0.0.1", engine),
            "gate": Endpoint("127.0.0.1", plain, gate=_TOKEN),
            "gate, TLS": Endpoint("127.0.0.1", tls, tls=True, gate=_TOKEN, ca=str(authority.certificate)),
        }
        loop = asyncio.get_running_loop()
        open_ = {name: await Connection.open(way, lambda: Connection(loop)) for name, way in ways.items()}
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(_ROUNDS + 200):
            for name, connection in open_.items():
                began = time.perf_counter()
                connection.begin(_REQUEST, b"")
                while not connection.ended:
                    await connection.more()
                connection.take()
                if number >= 200:
                    taken[name].append((time.perf_counter() - began) * 1e6)
        for connection in open_.values():
            connection.abort()
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    direct, *others = ((name, statistics.median(each)) for name, each in taken.items())
    rows = [Row("request straight to the engine's port, p50", direct[1], "us")]
    rows += [
        Row(
            f"added by the {name}, p50",
            p50 - direct[1],
            "us",
            baseline="direct, in all",
            ratio=p50 / direct[1],
            target=f"<= {_TARGET_US} us",
            met=p50 - direct[1] <= _TARGET_US,
        )
        for name, p50 in others
    ]
    return rows


async def _serve(role: str, *argv: str) -> None:
    if role == "engine":
        server = await asyncio.get_running_loop().create_server(_Engine, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    else:
        gate = Gate(lambda: False)
        certificate, key = map(Path, argv[1:]) if argv[1:] else (None, None)
        await gate.open(GateSettings("127.0.0.1", 0, certificate, key))
        gate.admit(_TOKEN, Endpoint("127.0.0.1", int(argv[0])))
        assert gate.address is not None
        port = gate.address.port
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1:]:
        uvloop.run(_serve(*sys.argv[1:]))
    else:
        print_table(main())
