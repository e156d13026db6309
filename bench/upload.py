"""What a file of 200 MB takes of the daemon's memory, and of the speed of others' streams."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.daemon.serving import Serving

from bench.load import request
from bench.rows import Row, print_table
from cotenant.domain.units import MIB

_UPLOAD_BYTES = 200_000_000
_PIECE = bytes(range(256)) * 1024
_ROUNDS = 3
_SAMPLE_S = 0.005
_TARGET_MIB = 16
_STREAMS = 16
_EVENTS = 150
_PACE_S = 0.02
_STREAM_ROUNDS = 5
_TARGET_P99 = 1.5
_CONFIGURATION = """\
server: {{host: 127.0.0.1, port: 0}}
devices: {{gpus: '24GiB'}}
models:
  - {{name: m, kind: any, engine: command, model: own, memory: 1GiB, env: {{PYTHONPATH: '{root}'}},
     command: ['{python}', -m, tests.support.engines.media_server, '{{port}}']}}
  - {{name: sink, kind: any, engine: command, memory: 1GiB, env: {{PYTHONPATH: '{root}/src:{root}'}},
     command: ['{python}', -m, bench.sink, '{{port}}']}}
  - {{name: stub, engine: remote, address: 'http://127.0.0.1:{stub}'}}
"""


def main() -> list[Row]:
    """Send files through a daemon; its memory is sampled every 5 ms. Then the same beside paced streams."""
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen([sys.executable, "-m", "bench.stub"], stdout=subprocess.PIPE) as stub,
    ):
        assert stub.stdout is not None
        root = Path(__file__).parent.parent
        file = Path(folder) / "cotenant.yaml"
        stub_port = int(stub.stdout.readline())
        file.write_text(_CONFIGURATION.format(root=root, python=sys.executable, stub=stub_port))
        with Serving(["serve", "--config", str(file)], Path(folder) / "state") as daemon:
            port = int(daemon.address().rpartition(":")[2])
            rows = asyncio.run(_measure(port, daemon.process.pid))
            rows += _beside_streams(port)
            daemon.terminate()
        stub.kill()
    return rows


def _beside_streams(port: int) -> list[Row]:
    """Time between events of paced streams: alone, beside uploads to the engine itself, and through us.

    What an upload takes of the machine, its client and its engine, disturbs streams too: hence the second.
    """
    direct = _free_port()
    server = subprocess.Popen([sys.executable, "-m", "bench.sink", str(direct)])
    try:
        _wait_for(direct)
        kinds = {"alone": None, "the engine itself": direct, "the daemon": port}
        gaps: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(_STREAM_ROUNDS):
            for kind, target in kinds.items():
                gaps[kind] += asyncio.run(_streams(port, target))
    finally:
        server.kill()
        server.wait()
    p99 = {kind: statistics.quantiles(found, n=100)[98] for kind, found in gaps.items()}
    ratio = p99["the daemon"] / p99["alone"]
    return [
        Row("p99 between events of 16 streams", p99["alone"] * 1000, "ms"),
        Row(
            "the same beside 200 MB to an engine itself",
            p99["the engine itself"] * 1000,
            "ms",
            "alone",
            p99["the engine itself"] / p99["alone"],
        ),
        Row(
            "the same beside 200 MB through the daemon",
            p99["the daemon"] * 1000,
            "ms",
            "alone",
            ratio,
            f"<= {_TARGET_P99} x alone",
            ratio <= _TARGET_P99,
        ),
        Row(
            "the same, of the daemon's own part",
            p99["the daemon"] * 1000,
            "ms",
            "the engine itself",
            p99["the daemon"] / p99["the engine itself"],
        ),
    ]


async def _streams(port: int, upload_to: int | None) -> list[float]:
    """Return the seconds between events of streams, while another process uploads, if it is to."""
    uploader = None
    if upload_to is not None:
        command = [sys.executable, "-m", "bench.upload", str(upload_to)]
        uploader = await asyncio.create_subprocess_exec(*command)
    found = await asyncio.gather(*(_stream(port) for _ in range(_STREAMS)))
    if uploader is not None:
        uploader.kill()
        await uploader.wait()
    return [gap for each in found for gap in each]


async def _stream(port: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(events=_EVENTS, pace_s=_PACE_S))
    gaps, last = [], None
    for _ in range(_EVENTS):
        await reader.readuntil(b"data: {")
        now = time.perf_counter()
        if last is not None:
            gaps.append(now - last)
        last = now
    writer.close()
    return gaps


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("the engine does not listen")


async def _upload_for_ever(port: int) -> None:
    while True:
        await _upload(port, "sink")


async def _measure(port: int, pid: int) -> list[Row]:
    for _ in range(20):
        await _moderate(port)
    before = most = _rss_bytes(pid)
    took = []
    for _ in range(_ROUNDS):
        upload = asyncio.create_task(_upload(port))
        while not upload.done():
            await asyncio.sleep(_SAMPLE_S)
            most = max(most, _rss_bytes(pid))
        took.append(await upload)
    grown = (most - before) / MIB
    target = f"<= {_TARGET_MIB} MiB"
    return [
        Row(
            "memory of the daemon during 200 MB of form",
            grown,
            "MiB",
            None,
            None,
            target,
            grown <= _TARGET_MIB,
        ),
        Row(
            "the same, of a body held whole", _UPLOAD_BYTES / MIB, "MiB", "ours", _UPLOAD_BYTES / MIB / grown
        ),
        Row("200 MB through the daemon", statistics.median(took), "s"),
    ]


async def _upload(port: int, model: str = "m") -> float:
    """Send a file with `model` after it, as curl does; return the seconds that it took."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    tail = b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b--\r\n' % model.encode()
    digest, left = hashlib.sha256(), _UPLOAD_BYTES
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head("/v1/audio/transcriptions", "multipart/form-data; boundary=b",
                       len(head) + left + len(tail)) + head)  # fmt: skip
    while left:
        piece = _PIECE[:left]
        digest.update(piece)
        writer.write(piece)
        await writer.drain()
        left -= len(piece)
    writer.write(tail)
    body = await _body(reader)
    writer.close()
    if model != "sink" and json.loads(body) != {"text": digest.hexdigest()}:
        raise SystemExit(f"the file did not arrive as it was sent: {body!r}")
    return time.perf_counter() - started


async def _moderate(port: int) -> None:
    body = b'{"model":"m","input":"x"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head("/v1/moderations", "application/json", len(body)) + body)
    await _body(reader)
    writer.close()


def _head(path: str, kind: str, length: int) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {length}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


async def _body(reader: asyncio.StreamReader) -> bytes:
    whole = await reader.read()
    head, _, body = whole.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise SystemExit(f"the daemon answered {whole[:400]!r}")
    return body


def _rss_bytes(pid: int) -> int:
    """Resident memory of the daemon without its files, which a cache of the kernel holds."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(_upload_for_ever(int(sys.argv[1])))
    print_table(main())
