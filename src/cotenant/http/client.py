"""Small HTTP requests, each on a connection of its own, within limits of time and size.

There is no pool and no proxy. A response ends where HTTP defines it, whether or not the server then closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin

from cotenant.domain.engines import Endpoint
from cotenant.domain.units import MIB
from cotenant.http.addresses import endpoint_of, http_parts, is_plain
from cotenant.http.connection import Connection, Header, ResponseBroken, tls_fault
from cotenant.http.listeners import verify_listener

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_JSON: Final = "application/json"
_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")


@dataclass(frozen=True, slots=True)
class Limits:
    """How many seconds each step may take, and how many bytes a body may have; None is no limit.

    `head_s` runs from the request to the end of the response's head, `silence_s` between pieces of the body,
    `whole_s` over all steps.
    """

    connect_s: float | None = 5.0
    head_s: float | None = None
    silence_s: float | None = None
    whole_s: float | None = None
    body_bytes: int | None = 4 * MIB


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response. Header names are in lower case."""

    status: int
    headers: Sequence[Header]
    body: bytes

    def json_object(self, *, of_any_status: bool = False) -> Mapping[str, Any] | None:
        """Return the JSON object of a response with status 200, or of any; None for anything else."""
        try:
            found = json.loads(self.body) if self.status == 200 or of_any_status else None
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True, slots=True)
class Request:
    """A request; its payload is sent as JSON, None as no body."""

    endpoint: Endpoint
    method: str
    path: str
    payload: object = None
    accept: str = _JSON

    def encoded(self) -> tuple[bytes, bytes]:
        """Return the bytes of the head and of the body. Raises ValueError for an impossible path."""
        endpoint, target = self.endpoint, self.endpoint.target(self.path)
        if not is_plain(target):
            raise ValueError(f"{target!r} has characters that an address cannot have")
        body = b"" if self.payload is None else json.dumps(self.payload).encode()
        lines = [f"{self.method} {target} HTTP/1.1", f"Host: {endpoint.authority}", "Connection: close"]
        lines.append(f"Accept: {self.accept}")
        if self.method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        if body:
            lines.append(f"Content-Type: {_JSON}")
        if endpoint.key is not None:
            lines.append(f"Authorization: Bearer {endpoint.key}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), body


@dataclass(slots=True)
class Exchange:
    """One request on a connection of its own, and its response as it arrives."""

    _connection: Connection
    _limits: Limits
    _deadline: float | None
    _body_bytes: int = 0

    @classmethod
    async def connect(cls, endpoint: Endpoint, limits: Limits) -> Exchange:
        """Connect; the caller closes it. Raises OSError."""
        loop = asyncio.get_running_loop()
        deadline = None if limits.whole_s is None else loop.time() + limits.whole_s
        async with _limit("no connection", limits.connect_s, deadline):
            connection = await Connection.open(endpoint, lambda: Connection(loop))
        try:
            verify_listener(endpoint)
        except OSError:
            connection.abort()
            raise
        return cls(connection, limits, deadline)

    async def send(self, request: Request) -> None:
        """Send the request and return when the head of its response has arrived.

        Raises OSError, of which ResponseBroken and TimeoutError are two.
        """
        self._connection.begin(*request.encoded())
        async with _limit("no response", self._limits.head_s, self._deadline):
            while self._connection.status is None:
                await self._connection.more()

    @property
    def status(self) -> int:
        """The status code."""
        return self._connection.status or 0

    @property
    def headers(self) -> Sequence[Header]:
        """The headers, with names in lower case."""
        return self._connection.headers

    async def read(self) -> bytes:
        """Return the next bytes of the body, b"" at its end. Raises OSError."""
        connection = self._connection
        while not (piece := connection.take()) and not connection.ended:
            async with _limit("no more of the response", self._limits.silence_s, self._deadline):
                await connection.more()
        self._body_bytes += len(piece)
        if self._limits.body_bytes is not None and self._body_bytes > self._limits.body_bytes:
            raise ResponseBroken(f"the response is longer than {self._limits.body_bytes} bytes")
        return piece

    async def body(self) -> bytes:
        """Return the rest of the body. Raises OSError."""
        return b"".join([piece async for piece in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    def close(self) -> None:
        """Close the connection, also before the response has ended."""
        self._connection.abort()


async def fetch(request: Request, limits: Limits) -> Response:
    """Return the whole response to a request. Raises OSError."""
    with contextlib.closing(await Exchange.connect(request.endpoint, limits)) as exchange:
        await exchange.send(request)
        return Response(exchange.status, exchange.headers, await exchange.body())


async def probe(
    endpoint: Endpoint, path: str, payload: object = None, *, timeout_s: float
) -> Response | None:
    """GET a path, or POST a payload to it; None without a whole response within `timeout_s`."""
    request = Request(endpoint, "GET" if payload is None else "POST", path, payload)
    try:
        return await fetch(request, Limits(timeout_s, whole_s=timeout_s))
    except (OSError, ValueError):
        return None


async def probe_ok(
    endpoint: Endpoint, path: str, payload: object = None, *, timeout_s: float
) -> Response | None:
    """Return what `probe` returns, but None if the status is not 200."""
    response = await probe(endpoint, path, payload, timeout_s=timeout_s)
    return response if response is not None and response.status == 200 else None


async def probe_json(
    endpoint: Endpoint, path: str, payload: object = None, *, timeout_s: float
) -> Mapping[str, Any] | None:
    """Return the JSON object of a response with status 200; None for anything else."""
    response = await probe(endpoint, path, payload, timeout_s=timeout_s)
    return None if response is None else response.json_object()


async def tls_problem(endpoint: Endpoint, *, timeout_s: float) -> str | None:
    """Return what is wrong with a server's TLS; None without TLS, or for an error that may be temporary."""
    if endpoint.tls:
        try:
            (await Exchange.connect(endpoint, Limits(timeout_s))).close()
        except OSError as error:
            return tls_fault(error)
    return None


async def get_url(url: str, limits: Limits) -> Response:
    """GET a URL and follow redirects. Raises OSError, or ValueError if it is not an HTTP URL."""
    for _ in range(_MAX_REDIRECTS):
        parts = http_parts(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        response = await fetch(Request(endpoint_of(parts), "GET", path, accept="*/*"), limits)
        location = next((value for name, value in response.headers if name == b"location"), None)
        if response.status not in _REDIRECTS or location is None:
            return response
        url = urljoin(url, location.decode("latin-1"))
    raise ResponseBroken(f"the server redirects more than {_MAX_REDIRECTS} times")


def describe(error: OSError) -> str:
    """Return why an exchange failed, in a few words."""
    if (problem := tls_fault(error)) is not None:
        return problem
    # If a name has several addresses, asyncio has the numbers only in its message.
    numbers = [error.errno] if error.errno else [int(found) for found in _ERRNO.findall(str(error))]
    if numbers and numbers[-1] > 0:
        return os.strerror(numbers[-1])
    return error.strerror or str(error) or type(error).__name__


@contextlib.asynccontextmanager
async def _limit(problem: str, seconds: float | None, deadline: float | None) -> AsyncIterator[None]:
    now = asyncio.get_running_loop().time()
    ends = [at for at in (None if seconds is None else now + seconds, deadline) if at is not None]
    try:
        async with asyncio.timeout_at(min(ends, default=None)):
            yield
    except TimeoutError:
        if not ends:
            raise
        raise TimeoutError(f"{problem} within {max(0.0, min(ends) - now):.3g} s") from None
