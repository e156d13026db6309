"""What the way between machines costs a model over two: its tokens, and the bytes that each of them sends.

The same llama-server, half of its layers on an RPC server: straight to it, through a forwarder and a gate,
and by TLS; asked in turns. It needs a build with RPC (COTENANT_TEST_LLAMA_SERVER) and stories260K.gguf.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import uvloop
from tests.support.http.tls_server import Authority
from tests.support.models.known_model import KNOWN_PROMPT, known_model, real_server
from tests.support.waiting import wait_until

from bench.rows import Row, print_table
from cotenant.agent.forwarder import Forwarder
from cotenant.agent.gate import Gate
from cotenant.agent.splice import Splice
from cotenant.domain.engines import Endpoint, RemotePart
from cotenant.engines.llama_cpp.builds import server_build
from cotenant.engines.process.ports import ReservedPort
from cotenant.model_files import load_model
from cotenant.nodes.messages import GateSettings
from cotenant.planning.over_machines import link_bytes

_TOKEN = "a-token-of-thirty-two-characters"
_TOKENS = 100
_ROUNDS = 12
_LENT_LAYERS = 3


def main() -> list[Row]:
    server, model = real_server(), known_model()
    lends = server_build(server).rpc_server
    assert lends is not None, f"{server} has no RPC: build llama.cpp with -DGGML_RPC=ON"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        authority = Authority.made(Path(folder))
        certificate, key = map(str, authority.signed("server"))

        def lent() -> int:
            port = _free_port()
            stack.enter_context(_running([lends, "--port", str(port)]))
            return port

        def forwarded(*tls: str) -> subprocess.Popen[str]:
            gate = stack.enter_context(_own("gate", str(lent()), *tls))
            ca = str(authority.certificate) if tls else ""
            return stack.enter_context(_own("forwarder", _said(gate), ca))

        counting, encrypted = forwarded(), forwarded(certificate, key)
        ways = {"direct": str(lent()), "gate": _said(counting), "gate, TLS": _said(encrypted)}
        urls = {}
        for name, port in ways.items():
            own = _free_port()
            urls[name] = f"http://127.0.0.1:{own}"
            argv = [str(server), "-m", str(model), "--port", str(own), "--rpc", f"127.0.0.1:{port}"]
            argv += ["--device", "RPC0", "-ngl", str(_LENT_LAYERS), "--fit", "off", "-c", "512", "-np", "1"]
            stack.enter_context(_running([*argv, "-t", "1"]))
        for url in urls.values():
            wait_until(lambda url=url: _is_up(url))
        taken: dict[str, list[float]] = {name: [] for name in urls}
        sent: list[int] = []
        for _ in range(_ROUNDS + 1):
            for name, url in urls.items():
                before = _count(counting)
                taken[name].append(_per_token_s(url))
                if name == "gate":
                    sent.append((_count(counting) - before) // _TOKENS)
    medians = {name: statistics.median(each[1:]) for name, each in taken.items()}
    shape = load_model(model)
    said, direct = link_bytes(shape, 2), medians.pop("direct")
    rows = [Row("a token, straight to the RPC server", direct * 1e3, "ms")]
    rows += [
        Row(f"a token through the {name}", each * 1e3, "ms", baseline="direct", ratio=each / direct)
        for name, each in medians.items()
    ]
    found = statistics.median(sent[1:])
    rows.append(Row("over the network a token, as planned", said, "bytes"))
    rows.append(
        Row("over the network a token, seen", found, "bytes", baseline="as planned", ratio=found / said)
    )
    return rows


def _per_token_s(url: str) -> float:
    asked = {"prompt": KNOWN_PROMPT, "n_predict": _TOKENS, "ignore_eos": True, "cache_prompt": False}
    request = urllib.request.Request(f"{url}/completion", json.dumps(asked).encode())
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return (time.perf_counter() - began) / _TOKENS


def _is_up(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
        return True
    return False


def _free_port() -> int:
    port = ReservedPort()
    number = port.number
    port.close()
    return number


@contextlib.contextmanager
def _running(argv: list[str], **more: object) -> Iterator[subprocess.Popen[str]]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **more}
    process = subprocess.Popen(argv, text=True, **quiet)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _own(role: str, *argv: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.over_machines", role, *argv]
    return _running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _count(forwarder: subprocess.Popen[str]) -> int:
    """Return how many bytes have passed, both ways."""
    assert forwarder.stdin is not None
    forwarder.stdin.write("\n")
    forwarder.stdin.flush()
    return int(_said(forwarder))


class _Counting(Splice):
    """Counts what passes."""

    passed = 0

    def data_received(self, data: bytes) -> None:
        _Counting.passed += len(data)
        plain(self, data)


plain = Splice.data_received


async def _serve(role: str, port: str, *argv: str) -> None:
    if role == "gate":
        gate = Gate(lambda: False)
        certificate, key = map(Path, argv) if argv else (None, None)
        await gate.open(GateSettings("127.0.0.1", 0, certificate, key))
        gate.admit(_TOKEN, Endpoint("127.0.0.1", int(port)))
        assert gate.address is not None
        print(gate.address.port, flush=True)
        await asyncio.Event().wait()
    Splice.data_received = _Counting.data_received
    through = Endpoint("127.0.0.1", int(port), tls=bool(argv[0]), gate=_TOKEN)
    authorities = await asyncio.to_thread(Path(argv[0]).read_text) if argv[0] else ""
    forwarder = Forwarder(RemotePart("b", "", through, authorities))
    print((await forwarder.open()).port, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(_Counting.passed, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        uvloop.run(_serve(*sys.argv[1:]))
    else:
        print_table(main())
