"""The listening socket, and uvicorn's HTTP protocol on it.

Only uvicorn's protocol is used: its Server would handle the process's signals, which are the daemon's, wake
up ten times a second, and not await cancelled requests.
"""

import asyncio
import contextlib
import errno
import logging
import math
import resource
import socket
from collections.abc import Callable
from typing import Final, Literal, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from cotenant.domain.errors import BadSetting, CotenantError, HeadersTooLarge, PortTaken, TooManyConnections
from cotenant.domain.units import format_bytes
from cotenant.gateway.app import Gateway
from cotenant.gateway.http.limits import Limits
from cotenant.gateway.http.problems import envelope, http_problem
from cotenant.gateway.http.tunnel import Tunnel, with_tunnel
from cotenant.gateway.inference.upstream import UPSTREAM

_log = logging.getLogger("cotenant.gateway")

_BACKLOG: Final = 2048
_PROBED: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""When the kernel finds out that a client is gone without a word, and closes."""
_OTHER_DESCRIPTORS: Final = 128
_MOST_CONNECTIONS: Final = 8192
_LOG_EVERY_S: Final = 60.0
_CUT_OFF_S: Final = 1.0
_OFFER: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address, before anything else is started; port 0 means any free port.

    Clients that connect before `serve` wait in the backlog. `::` accepts IPv4, too.
    Raises PortTaken, or BadSetting for an address that cannot be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BadSetting(f"the host {host!r} is unknown: {error}", hint="Check --host.") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBED:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        # Two sockets may bind the same port while neither listens, so only `listen` shows that it is free.
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _unbindable(host, port, error) from None
    return sock


async def serve(
    gateway: Gateway,
    sock: socket.socket,
    *,
    stop: asyncio.Event,
    grace_s: float,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve on a listening socket until `stop` is set, then close it.

    Requests in flight have `grace_s` seconds to end; then they are cancelled with an error. If this coroutine
    is cancelled, they are cancelled at once.
    """
    config = uvicorn.Config(
        gateway,
        interface="asgi3",
        http=HttpToolsProtocol,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        # uvicorn would log only errors of clients, and what the gateway logs already.
        log_level="critical",
        timeout_keep_alive=gateway.limits.keep_alive_s,
    )
    config.load()
    state = _State(gateway.limits)
    server = await asyncio.get_running_loop().create_server(
        lambda: _BoundedProtocol(config, state), sock=sock, backlog=_BACKLOG
    )
    closing_silent = asyncio.create_task(_close_silent(state))
    try:
        gateway.open()
        if on_ready is not None:
            on_ready()
        await stop.wait()
        server.close()
        gateway.end_streams()
        for connection in list(state.connections):
            connection.shutdown()
        await _wait_closed(state, grace_s)
    finally:
        closing_silent.cancel()
        server.close()
        gateway.end_streams()
        for task in state.tasks:
            task.cancel()  # it sends an error
        for connection in list(state.connections):
            connection.shutdown()
        await _wait_closed(state, _CUT_OFF_S)
        for connection in list(state.connections):
            connection.transport.abort()
        gateway.close()


class _State(ServerState):
    """uvicorn's ServerState with the limits, that also reports closed connections."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.most_connections = limits.connections or _most_connections()
        self.connection_ended = asyncio.Event()
        self._logged_at = -math.inf

    def make_room(self) -> bool:
        """Close the connection that has been without a whole request for longest; False if there is none."""
        idle = [each for each in cast(set[_BoundedProtocol], self.connections) if each.idle]
        if idle:
            oldest = min(idle, key=lambda each: each.since)
            self.connections.discard(oldest)
            oldest.transport.abort()
        return bool(idle)

    def full(self) -> TooManyConnections:
        """Return the error of a connection too many, which is logged once a minute."""
        error = TooManyConnections(
            f"all of the {self.most_connections} connections that may be open are in use",
            hint="Try again later. The limit follows that on open files of the daemon (ulimit -n).",
        )
        now = asyncio.get_running_loop().time()
        if now >= self._logged_at + _LOG_EVERY_S:
            self._logged_at = now
            _log.warning("connections are refused: %s", error.message)
        return error


def _most_connections() -> int:
    """Return how many the limit on descriptors allows: a request may need one to its engine, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(8, min(_MOST_CONNECTIONS, (soft - _OTHER_DESCRIPTORS) // 2))


async def _close_silent(state: _State) -> None:
    """Close connections whose request does not become complete; one timer serves all."""
    loop, limits = asyncio.get_running_loop(), state.limits
    while True:
        await asyncio.sleep(min(limits.head_s, limits.silence_s, 20.0) / 4)
        for connection in list(cast(set[_BoundedProtocol], state.connections)):
            if connection.is_late(loop.time()):
                connection.transport.abort()


async def _wait_closed(state: _State, timeout_s: float) -> None:
    """Wait until all responses are sent and all connections are closed, at most `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while state.tasks:
                await asyncio.wait(state.tasks)
            while state.connections:
                state.connection_ended.clear()
                await state.connection_ended.wait()


class _BatchingTransport(asyncio.Transport):
    """A transport that writes once per iteration of the event loop.

    uvicorn writes the head and the body of a response separately; each write is a system call that wakes the
    client, and the second one is a tenth of the cost of a request.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._pieces: list[bytes] = []
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._pieces:
            self._call_soon(self._flush)
        self._pieces.append(bytes(data))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._pieces.clear()
        self._transport.abort()

    def _flush(self) -> None:
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()


class _BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits that uvicorn lacks: bytes of a head (and of chunk framing), and time.

    The limit may be exceeded by one read of the socket (256 KiB); the application checks heads exactly.
    `since` is when the client was last expected to send, or, in a body, when it would have to have begun to
    have sent what came at the least rate.

    Offers to speak another protocol are ignored (RFC 9110, 7.8), but for WebSocket to an engine: a JDK's
    HttpClient sends `Upgrade: h2c` with its first request, and the parser would leave the body of that
    request unread.
    """

    def __init__(self, config: uvicorn.Config, state: _State) -> None:
        super().__init__(config, state, {})
        self._state = state
        self._head_bytes = state.limits.head_bytes
        self._unread_ms = round(state.limits.unread_s * 1000)
        self._bytes_since_progress = 0
        self._within: Literal["head", "body"] | None = "head"
        self._offered: Tunnel | None = None
        self._tunnel: Tunnel | None = None
        self.since = self.loop.time()

    @property
    def idle(self) -> bool:
        """Whether no request on it is complete and still to be answered."""
        return self._within is not None or self.cycle is None or self.cycle.response_complete

    def is_late(self, now: float) -> bool:
        """Whether the client has not sent for too long what it has begun, or what a new connection is for."""
        if self._within == "head":
            return now - self.since > self._state.limits.head_s
        return self._within == "body" and now - self.since > self._state.limits.silence_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The kernel ends a connection whose client takes nothing, whether it has vanished or does not read: a
        # response would hold its slot and its memory for ever.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._unread_ms)
        super().connection_made(_BatchingTransport(cast(asyncio.Transport, transport)))
        if len(self.connections) > self._state.most_connections:
            self.connections.discard(self)
            if self._state.make_room():
                self.connections.add(self)
            else:
                self._refuse(self._state.full())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._tunnel is not None:
            self._tunnel.end()
        self._state.connection_ended.set()

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.feed(data)
            return
        self._bytes_since_progress += len(data)
        if self._within == "body":
            # Bytes buy time, not more than has passed: one that comes now and then buys next to none.
            self.since = min(self.loop.time(), self.since + len(data) / self._state.limits.body_rate)
        elif self._within is None and self.idle:
            self._expect_head()
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        except httptools.HttpParserUpgrade as upgrade:
            # The parser is of no use after this: another one reads the request without the offer.
            head, rest = self._head_without_offer(), data[upgrade.args[0] :]
            if self._offers_websocket():
                self._offered = Tunnel(self.transport, self.flow, self._begin_tunnel)
            self.parser = httptools.HttpRequestParser(self)
            self.data_received(head if self._offered else head + rest)
            self._tunnel, self._offered = self._offered, None
            if self._tunnel is not None and rest:
                self._tunnel.feed(rest)
            return
        if self._bytes_since_progress > self._head_bytes and not self.transport.is_closing():
            self._refuse(
                HeadersTooLarge(f"the headers are over the limit of {format_bytes(self._head_bytes)}")
            )

    def _expect_head(self) -> None:
        self._within, self.since = "head", self.loop.time()

    def on_headers_complete(self) -> None:
        self._bytes_since_progress = 0
        self._within, self.since = "body", self.loop.time()
        if self._is_offer:
            return
        if self._offered is not None:
            with_tunnel(self.scope, self._offered)
        super().on_headers_complete()
        if self._offered is not None:
            # What follows an offer that was not accepted is no request.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._bytes_since_progress = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._bytes_since_progress = 0
        self._within = None
        if not self._is_offer:
            super().on_message_complete()

    @property
    def _is_offer(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _offers_websocket(self) -> bool:
        """Whether the request offers a WebSocket where one may be."""
        offered = dict(self.headers).get(b"upgrade", b"").lower() == b"websocket"
        return offered and self.parser.get_method() == b"GET" and self.url.startswith(UPSTREAM.encode())

    def _begin_tunnel(self) -> None:
        # uvicorn sends no response of its own then.
        self.cycle.response_started = True

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name not in _OFFER:
                lines.append(b"%b: %b" % (name, value))
            elif name == b"connection" and b"close" in value.lower():
                lines.append(b"connection: close")
        return b"\r\n".join((*lines, b"\r\n"))

    def _refuse(self, error: CotenantError) -> None:
        if self.cycle is None or self.cycle.response_complete:
            body, problem = envelope(error), http_problem(error)
            head = [STATUS_LINE[problem.status], b"content-type: application/json\r\n"]
            head += [b"%b: %b\r\n" % header for header in problem.headers(None)]
            head.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
            self.transport.write(b"".join((*head, body)))
        self.transport.close()


def _unbindable(host: str, port: int, error: OSError) -> CotenantError:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"{host} port {port} is in use",
            hint="Choose another with --port (0 means any free one), or stop the program that uses it.",
        )
    if error.errno == errno.EACCES:
        return BadSetting(
            f"no permission to listen on port {port}", hint="Choose one above 1023 with --port."
        )
    return BadSetting(
        f"cannot listen on {host} port {port}: {error.strerror}", hint="Check --host and --port."
    )
