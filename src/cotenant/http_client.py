"""One HTTP request to an address that the operator names, its answer read as it comes.

For what is asked now and then: no pool, no redirects, no proxies. The gateway's way to engines is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httptools

from cotenant.tls import client_context

_CHUNK_BYTES: Final = 65536
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Site:
    """Where an API is: `prefix` precedes every path, and `api_key` is sent as a bearer's."""

    url: str
    host: str
    port: int
    tls: bool
    prefix: str = ""
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> Site:
        """Read a URL; a trailing `/v1`, as OpenAI's clients want it, is left off. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not an address")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(f"{url!r} has characters that an address cannot have")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key has characters that a header cannot carry")
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        port = parts.port or _PORTS[parts.scheme]
        return cls(url.rstrip("/"), parts.hostname, port, parts.scheme == "https", prefix, api_key)


class Answer:
    """An answer that is being read: `status` is known, the body comes in pieces."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: deque[bytes] = deque()
        self._framed = False
        self._ended = False
        self.status = 0

    async def begin(self) -> None:
        """Read the head. Raises OSError."""
        while not self.status:
            await self._read()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises OSError when it breaks off."""
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self._ended:
                return
            await self._read()

    async def body(self, limit_bytes: int) -> bytes:
        """Return the whole body. Raises OSError, also for one that is longer than the limit."""
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > limit_bytes:
                raise ConnectionError(f"the answer is longer than {limit_bytes} bytes")
        return bytes(whole)

    async def _read(self) -> None:
        data = await self._reader.read(_CHUNK_BYTES)
        if not data:
            if not self.status or self._framed:
                raise ConnectionError("the connection was closed in the middle of the answer")
            self._ended = True
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise ConnectionError("the answer is not HTTP") from None

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note whether the body's end is marked."""
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        """Publish the status, unless it is an interim one (1xx)."""
        status: int = self._parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self._ended = bool(self.status)


@contextlib.asynccontextmanager
async def connected(site: Site) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection for one request. Raises OSError."""
    reader, writer = await asyncio.open_connection(
        site.host, site.port, ssl=client_context() if site.tls else None
    )
    try:
        yield reader, writer
    finally:
        # Cut, not closed: an answer that is not wanted any more may never end.
        writer.transport.abort()


@contextlib.asynccontextmanager
async def asked(site: Site, method: str, path: str, payload: object = None) -> AsyncIterator[Answer]:
    """Send a request and yield its answer, its head read. Raises OSError."""
    async with connected(site) as (reader, writer):
        writer.write(request_bytes(site, method, path, payload))
        answer = Answer(reader)
        await answer.begin()
        yield answer


def request_bytes(site: Site, method: str, path: str, payload: object = None) -> bytes:
    """Return a request as it goes over the wire, its payload as JSON."""
    body = b"" if payload is None else json.dumps(payload).encode()
    host = f"[{site.host}]" if ":" in site.host else site.host
    lines = [
        f"{method} {site.prefix}{path} HTTP/1.1",
        f"Host: {host}:{site.port}",
        "Connection: close",
        "Accept: application/json, text/event-stream",
        f"Content-Length: {len(body)}",
    ]
    if body:
        lines.append("Content-Type: application/json")
    if site.api_key:
        lines.append(f"Authorization: Bearer {site.api_key}")
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body
