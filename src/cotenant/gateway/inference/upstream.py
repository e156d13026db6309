"""Connections to engines: HTTP/1.1 on asyncio.Protocol and httptools, pooled per endpoint.

One request at a time on each connection. Body bytes are handed on as they come; what the reader has not taken
is bounded by pausing the socket.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

import httptools

from cotenant.asgi import Header
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import UpstreamFailed
from cotenant.domain.units import KIB
from cotenant.tls import client_context, tls_fault

_HIGH_WATER_BYTES: Final = 256 * KIB
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
# Hop-by-hop headers, the engine's own name, and its CORS: whom a browser may trust is not for it to say.
_NOT_RETURNED: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"server",
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-expose-headers",
        b"access-control-max-age",
    }
)


class Connection(asyncio.Protocol):
    """A connection to an engine, and the response that is being read from it.

    `status` is None until the head is there; `headers` are those that concern the client. `ended` is set when
    the whole body has arrived, though `take` may still hold some of it; `cut` when this side closed in the
    middle of a request, so that the engine may still be at work on it.
    """

    __slots__ = (
        "_begun",
        "_broken",
        "_chunks",
        "_expecting",
        "_framed",
        "_interim",
        "_loop",
        "_parser",
        "_paused",
        "_pool",
        "_reusable",
        "_reused",
        "_transport",
        "_untaken_bytes",
        "_waiter",
        "cut",
        "ended",
        "endpoint",
        "event_stream",
        "headers",
        "idle_since",
        "status",
    )

    def __init__(self, pool: Pool, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self.endpoint = endpoint
        self.idle_since = 0.0
        self._pool = pool
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._broken: str | None = None
        self._reused = False
        self.cut = False
        self._reset()

    def _reset(self) -> None:
        self.status: int | None = None
        self.headers: list[Header] = []
        self.ended = False
        self.event_stream = False
        self._chunks: list[bytes] = []
        self._untaken_bytes = 0
        self._begun = False
        self._expecting = False
        self._framed = False
        self._interim = False
        self._paused = False
        self._reusable = False

    # What the reader calls.

    def begin(self, head: bytes, body: bytes) -> None:
        """Send a request; the response is reset."""
        if self.ended:
            self._reused = True
            self._reset()
        self._expecting = True
        self._transport.writelines((head, body))

    async def more(self) -> None:
        """Return when something has come: the head, bytes of the body, the end.

        Raises UpstreamFailed when nothing more will come.
        """
        if self._broken is not None:
            raise UpstreamFailed(f"the engine at {self.endpoint.url} {self._broken}")
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """Return the bytes of the body that have come since the last call."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._untaken_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def stale(self) -> bool:
        """Whether the engine had closed a pooled connection before this request reached it."""
        return self._reused and not self._begun

    @property
    def sized(self) -> bool:
        """Whether the response declares its length, so that nothing may be added to it."""
        return any(name == b"content-length" for name, _ in self.headers)

    @property
    def lost(self) -> bool:
        """Whether the engine closed before its response had ended."""
        return self._broken is not None and not self.ended and not self.cut

    @property
    def reusable(self) -> bool:
        """Whether another request may follow, as far as is known.

        llama.cpp announces keep-alive on an event stream and then closes: that is met by `stale`.
        """
        return self._reusable and self._broken is None

    @property
    def usable(self) -> bool:
        """Whether the connection is still open, as far as is known."""
        return self._broken is None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; a reader that waits gets UpstreamFailed."""
        self._hang_up("was cut off")

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came and wake the reader, once for however many chunks it holds."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._begun = True
            self._hang_up("answered what is not HTTP")
            return
        self._untaken_bytes += len(data)
        if self._untaken_bytes > _HIGH_WATER_BYTES and not self._paused and not self.ended:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a response that only the end of the connection delimits; break any other."""
        if exc is None and self._broken is None and self.status is not None and not self._framed:
            self.ended = True
        self._break("closed the connection")
        self._pool.forget(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Refuse bytes that no request asked for."""
        if not self._expecting:
            raise ValueError("a response without a request")
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header for the client; note what it says of the body."""
        name = name.lower()
        if name in _FRAMING:
            self._framed = True
        elif name == b"content-type":
            self.event_stream = value.startswith(b"text/event-stream")
        if name not in _NOT_RETURNED:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Publish the status, unless it is an interim one (1xx)."""
        status: int = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            self.headers.clear()
            return
        self.status = status

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """End the response."""
        if self._interim:
            self._interim = False
            return
        self.ended = True
        self._expecting = False
        self._reusable = self._parser.should_keep_alive()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _hang_up(self, why: str) -> None:
        if self._broken is None:
            self.cut = self._expecting
            self._break(why)

    def _break(self, how: str) -> None:
        if self._broken is None:
            self._broken = how
            self._transport.abort()
            self._wake()


class Pool:
    """Connections to engines, kept open between requests.

    Idle ones are reused newest first, at most `max_idle` per endpoint, and none older than `max_idle_age_s`:
    llama.cpp closes after 5 s of silence, and a connection about to be closed costs a second try. Those that
    an engine closes leave by themselves, so no timer sweeps the pool.
    """

    def __init__(
        self, *, max_idle: int = 64, max_idle_age_s: float = 4.0, connect_timeout_s: float = 5.0
    ) -> None:
        self._max_idle = max_idle
        self._max_idle_age_s = max_idle_age_s
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Endpoint, list[Connection]] = {}

    def idle(self, endpoint: Endpoint) -> Connection | None:
        """Take an idle connection, or None when one must be made."""
        connections = self._idle.get(endpoint)
        if not connections:
            return None
        connection = connections.pop()
        oldest = asyncio.get_running_loop().time() - self._max_idle_age_s
        if connection.usable and connection.idle_since >= oldest:
            return connection
        # The newest is too old or closed, so those under it are of no use either.
        connection.abort()
        for other in self._idle.pop(endpoint):
            other.abort()
        return None

    async def connect(self, endpoint: Endpoint) -> Connection:
        """Open a connection. Raises UpstreamFailed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, endpoint, loop),
                    endpoint.host,
                    endpoint.port,
                    ssl=client_context() if endpoint.tls else None,
                )
        except OSError as error:  # TimeoutError is one
            how = "accepts no connection" if isinstance(error, TimeoutError) else "cannot be reached"
            if (fault := tls_fault(error)) is not None:
                how = f"{how}: {fault}"
            raise UpstreamFailed(f"the engine at {endpoint.url} {how}") from error
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose response has ended, or close it."""
        if not connection.reusable:
            connection.abort()
            return
        connections = self._idle.setdefault(connection.endpoint, [])
        if len(connections) < self._max_idle:
            connection.idle_since = asyncio.get_running_loop().time()
            connections.append(connection)
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed."""
        connections = self._idle.get(connection.endpoint)
        if connections is None:
            return
        if connection in connections:
            connections.remove(connection)
        if not connections:
            del self._idle[connection.endpoint]

    def close(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
