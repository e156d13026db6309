"""One small request to an engine, without an HTTP library."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, Final

from cotenant.domain.engines import Endpoint
from cotenant.domain.units import MIB
from cotenant.tls import client_context, tls_fault

_MAX_ANSWER_BYTES: Final = 4 * MIB


async def get(endpoint: Endpoint, path: str, *, timeout_s: float) -> tuple[int, bytes] | None:
    """Return status and body, or None when nobody answers within `timeout_s` or it is no HTTP."""
    return await _ask(endpoint, "GET", path, b"", timeout_s)


async def post(
    endpoint: Endpoint, path: str, body: Mapping[str, object], *, timeout_s: float
) -> tuple[int, bytes] | None:
    """Send a JSON object; the answer as of `get`."""
    return await _ask(endpoint, "POST", path, json.dumps(body).encode(), timeout_s)


async def fault(endpoint: Endpoint, *, timeout_s: float) -> str | None:
    """Say why nobody can be asked there, as far as it will not pass by itself: what is wrong with its TLS."""
    if not endpoint.tls:
        return None
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=client_context())
    except OSError as error:  # TimeoutError is one
        return tls_fault(error)
    writer.transport.abort()
    return None


def json_object(answer: tuple[int, bytes] | None) -> Mapping[str, Any] | None:
    """Return the JSON object of an answer with status 200; None for anything else."""
    if answer is None or answer[0] != 200:
        return None
    try:
        found = json.loads(answer[1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


async def _ask(
    endpoint: Endpoint, method: str, path: str, body: bytes, timeout_s: float
) -> tuple[int, bytes] | None:
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _exchange(endpoint, method, path, body)
    except (OSError, TimeoutError, asyncio.LimitOverrunError):
        return None
    head, separator, found = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not separator or not head.startswith(b"HTTP/1.") or not words[1].isdigit():
        return None
    return int(words[1]), found


async def _exchange(endpoint: Endpoint, method: str, path: str, body: bytes) -> bytes:
    context = client_context() if endpoint.tls else None
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
    try:
        # HTTP/1.0: the answer ends with the connection and is never chunked.
        lines = [f"{method} {endpoint.prefix}{path} HTTP/1.0", f"Host: {endpoint.authority}"]
        if endpoint.key is not None:
            lines.append(f"Authorization: Bearer {endpoint.key}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        answer = bytearray()
        while len(answer) < _MAX_ANSWER_BYTES and (data := await reader.read(65536)):
            answer += data
        return bytes(answer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
