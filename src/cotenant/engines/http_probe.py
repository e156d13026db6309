"""One small GET to an engine, without an HTTP library."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from cotenant.domain.engines import Endpoint
from cotenant.domain.units import MIB

_MAX_ANSWER_BYTES: Final = 4 * MIB


async def get(endpoint: Endpoint, path: str, *, timeout_s: float) -> tuple[int, bytes] | None:
    """Return status and body, or None when nobody answers within `timeout_s` or it is no HTTP."""
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _exchange(endpoint, path)
    except (OSError, TimeoutError, asyncio.LimitOverrunError):
        return None
    head, separator, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not separator or not head.startswith(b"HTTP/1.") or not words[1].isdigit():
        return None
    return int(words[1]), body


async def _exchange(endpoint: Endpoint, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        # HTTP/1.0: the answer ends with the connection and is never chunked.
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {endpoint.host}\r\n\r\n".encode())
        answer = bytearray()
        while len(answer) < _MAX_ANSWER_BYTES and (data := await reader.read(65536)):
            answer += data
        return bytes(answer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
