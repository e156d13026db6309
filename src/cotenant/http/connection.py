"""One HTTP/1.1 connection to a server, on asyncio.Protocol and httptools.

One request at a time. Body bytes are available as they arrive. The socket is paused if the reader does not
take them, which also bounds everything else that a server may send without end.
"""

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final, Self, cast

import httptools

from cotenant.domain.engines import Endpoint
from cotenant.domain.units import KIB

Header = tuple[bytes, bytes]

_HIGH_WATER_BYTES: Final = 256 * KIB
"""How much of a body is buffered before the socket is paused, and how long a head may be."""
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_NOT_HTTP: Final = "answered what is not HTTP"


class ResponseBroken(ConnectionError):
    """The response ended early or is not acceptable; the message says how."""


class NotHttp(ResponseBroken):
    """What the server sent is not HTTP."""


_UNHEARD_S: Final = 10
_PROBE: Final = ((socket.TCP_KEEPIDLE, 4), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))


def notice_silence(sock: socket.socket) -> None:
    """Have the kernel break a connection to another machine that has answered nothing for 10 s.

    It would send again for a quarter of an hour. An engine that computes does answer: its kernel does.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_S * 1000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Connection(asyncio.Protocol):
    """A connection, and the response that is being read from it.

    `status` is None until the head has arrived; `headers` are then complete, with names in lower case,
    and `location` is where a redirect leads. `ended` is set when the whole body has arrived, though `take`
    may still hold some of it; `cut` when this side closed during a request, so that the server may still
    process it.

    Subclasses may drop headers, raise an error of their own, and handle the end of the connection.
    """

    _dropped_headers: frozenset[bytes] = frozenset()

    __slots__ = (
        "_begun",
        "_bodiless",
        "_broken",
        "_chunks",
        "_expecting",
        "_framed",
        "_full",
        "_interim",
        "_loop",
        "_parser",
        "_paused",
        "_reusable",
        "_reused",
        "_transport",
        "_unsent",
        "_untaken_bytes",
        "_waiter",
        "cut",
        "ended",
        "event_stream",
        "headers",
        "location",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._broken: str | None = None
        self._reused = False
        self._full = False
        self._unsent = False
        self.cut = False
        self._reset()

    def _reset(self) -> None:
        self.status: int | None = None
        self.headers: list[Header] = []
        self.ended = False
        self.event_stream = False
        self.location = b""
        self._chunks: list[bytes] = []
        self._untaken_bytes = 0
        self._begun = False
        self._bodiless = False
        self._expecting = False
        self._framed = False
        self._interim = False
        self._paused = False
        self._reusable = False

    # Called by the reader.

    @classmethod
    async def open(cls, endpoint: Endpoint, make: Callable[[], Self]) -> Self:
        """Return a new connection to an endpoint, past its gate if it is behind one. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(
            make, endpoint.host, endpoint.port, ssl=client_context(endpoint.ca) if endpoint.tls else None
        )
        if endpoint.gate is not None:
            notice_silence(connection._transport.get_extra_info("socket"))
            connection._transport.write(f"{endpoint.gate}\n".encode("ascii"))
        return connection

    def begin(self, head: bytes, body: bytes, *, bodiless: bool = False) -> None:
        """Send a request; the response is reset, and ends with its head if it is `bodiless` (HEAD)."""
        if self.ended:
            self._reused = True
            self._reset()
        self._expecting = True
        self._bodiless = bodiless
        self._transport.writelines((head, body))

    async def send(self, pieces: AsyncIterator[bytes]) -> None:
        """Send the rest of a request as the server takes it, or until it answers, which it may do early.

        Raises what `more` raises.
        """
        async for piece in pieces:
            self._unsent = True
            while self._full and self.status is None:
                await self.more()
            if self.status is not None:
                return
            if self._broken is not None:
                raise self._failure(self._broken)
            self._transport.write(piece)
        self._unsent = False

    async def more(self) -> None:
        """Return when something has arrived: the head, bytes of the body, the end.

        Raises ResponseBroken, or what a subclass raises instead, when nothing more will arrive.
        """
        if self._broken is not None:
            raise self._failure(self._broken)
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """Return the bytes of the body that have arrived since the last call."""
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
        """Whether the server had closed a reused connection before this request reached it."""
        return self._reused and not self._begun

    @property
    def sized(self) -> bool:
        """Whether the response declares its length, so that nothing can be added to it."""
        return any(name == b"content-length" for name, _ in self.headers)

    @property
    def lost(self) -> bool:
        """Whether the server closed before its response had ended."""
        return self._broken is not None and not self.ended and not self.cut

    @property
    def reusable(self) -> bool:
        """Whether another request can follow, as far as this side knows.

        llama.cpp announces keep-alive on an event stream and then closes: `stale` covers that.
        """
        return self._reusable and self._broken is None and not self._unsent

    @property
    def usable(self) -> bool:
        """Whether the connection is still open, as far as this side knows."""
        return self._broken is None and not self._transport.is_closing()

    @property
    def awaited(self) -> bool:
        """Whether a reader waits for more."""
        return self._waiter is not None

    def abort(self) -> None:
        """Close at once; a waiting reader gets an error."""
        self._hang_up("was cut off")

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse the data and wake the reader, once for all chunks in it."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._begun = True
            self._hang_up(_NOT_HTTP)
            return
        self._untaken_bytes += len(data)
        if self._untaken_bytes > _HIGH_WATER_BYTES and not self._paused and not self.ended:
            if not self._chunks:
                # Without a body: an endless head, interim responses, chunk extensions or trailers.
                self._hang_up("sends a head without end")
                return
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        """Note that the server takes less than is sent."""
        self._full = True

    def resume_writing(self) -> None:
        """Continue to send."""
        self._full = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a response that only the end of the connection delimits; any other response is broken."""
        if exc is None and self._broken is None and self.status is not None and not self._framed:
            self.ended = True
        self._break(
            "reset the connection" if isinstance(exc, ConnectionResetError) else "closed the connection"
        )
        self._closed()

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Reject a response without a request."""
        if not self._expecting:
            raise ValueError("a response without a request")
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and note what it says about the body. Ignore trailers."""
        if self.status is not None:
            return
        name = name.lower()
        if name in _FRAMING:
            self._framed = True
        elif name == b"content-type":
            self.event_stream = value.lower().startswith(b"text/event-stream")
        elif name == b"location":
            self.location = value
        if name not in self._dropped_headers:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Publish the status, unless it is an interim one (1xx)."""
        status: int = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            self._framed = False
            self.headers.clear()
            return
        self.status = status
        if self._bodiless:
            # The parser would wait for the body that the head describes: no request can follow.
            self.ended, self._expecting = True, False

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
        self._reusable = self._parser.should_keep_alive() and not self._bodiless

    # Overridden by subclasses.

    def _failure(self, how: str) -> Exception:
        """Return the error for a response that will not be complete."""
        return (NotHttp if how == _NOT_HTTP else ResponseBroken)(f"the server {how}")

    def _closed(self) -> None:
        """Note that the connection is closed."""

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


def client_context(ca: str | None = None) -> ssl.SSLContext:
    """Return the context that checks certificates.

    It is created once, which takes tens of milliseconds, and again when the file `ca` has changed. Without
    one, OpenSSL reads the authorities from the system's folder, and from `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    Raises OSError if the file cannot be used.
    """
    return _context(ca, 0 if ca is None else os.stat(ca).st_mtime_ns)


@functools.lru_cache(64)
def _context(ca: str | None, changed_at: int) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


def tls_fault(error: OSError) -> str | None:
    """Return what is wrong with a server's TLS; None for any other error, or one that may be temporary."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return None
    reason = (error.reason or "unknown").replace("_", " ").lower()
    return f"it does not speak TLS correctly: {reason}"
