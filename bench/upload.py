"""What a file of 200 MB takes of the daemon's memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.daemon.serving import Serving

from bench.rows import Row, print_table
from cotenant.domain.units import MIB

_UPLOAD_BYTES = 200_000_000
_PIECE = bytes(range(256)) * 1024
_ROUNDS = 3
_SAMPLE_S = 0.005
_TARGET_MIB = 16
_CONFIGURATION = """\
server: {{host: 127.0.0.1, port: 0}}
devices: {{gpus: '24GiB'}}
models:
  - {{name: m, kind: any, engine: command, model: own, memory: 1GiB, env: {{PYTHONPATH: '{root}'}},
     command: ['{python}', -m, tests.support.engines.media_server, '{{port}}']}}
"""


def main() -> list[Row]:
    """Send files through a daemon; its memory is sampled every 5 ms."""
    with TemporaryDirectory() as folder:
        root = Path(__file__).parent.parent
        file = Path(folder) / "cotenant.yaml"
        file.write_text(_CONFIGURATION.format(root=root, python=sys.executable))
        with Serving(["serve", "--config", str(file)], Path(folder) / "state") as daemon:
            port = int(daemon.address().rpartition(":")[2])
            rows = asyncio.run(_measure(port, daemon.process.pid))
            daemon.terminate()
    return rows


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


async def _upload(port: int) -> float:
    """Send a file with `model` after it, as curl does; return the seconds that it took."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    tail = b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
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
    if json.loads(body) != {"text": digest.hexdigest()}:
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
    print_table(main())
