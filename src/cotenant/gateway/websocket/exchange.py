"""A WebSocket below `/upstream/MODEL/`: the model is loaded, and stays while the WebSocket is open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from cotenant.asgi import Header
from cotenant.domain.errors import CotenantError, EngineDied, ModelUnloaded, ShuttingDown, UpstreamFailed
from cotenant.domain.requests import LeaseTerms
from cotenant.domain.units import printable
from cotenant.gateway.http.problems import http_problem
from cotenant.gateway.http.tunnel import Tunnel
from cotenant.gateway.inference.dialects import Target
from cotenant.gateway.inference.engine_connections import open_stream
from cotenant.gateway.inference.request import websocket_head
from cotenant.gateway.inference.request_log import CLIENT_CLOSED_REQUEST, RequestRecord
from cotenant.gateway.inference.request_options import read_request_options
from cotenant.gateway.inference.shared import Proxy
from cotenant.gateway.inference.waiting import LeaseWait
from cotenant.gateway.websocket.frames import Frames, close_frame
from cotenant.interfaces import Lease

_SWITCHING: Final = 101
_GOING_AWAY, _NOT_ALLOWED, _BROKEN = 1001, 1008, 1011
"""Codes of RFC 6455, 7.4.1: the model or the daemon goes, the key may no more, the engine is gone."""
_PIECE_BYTES: Final = 65_536
_OF_HANDSHAKE: Final = (b"upgrade:", b"connection:", b"sec-websocket-")


class WebSocketExchange:
    """One WebSocket: its client's `tunnel`, its lease, and its connection to the engine.

    What both say is passed as it is, so extensions and subprotocols are between them. `ended` returns why
    the client may not go on, if so.
    """

    def __init__(
        self,
        proxy: Proxy,
        target: Target,
        headers: Sequence[Header],
        tunnel: Tunnel,
        ended: Callable[[], Coroutine[Any, Any, CotenantError]],
    ) -> None:
        self._proxy = proxy
        self._target = target
        self._headers = headers
        self._tunnel = tunnel
        self._ended = ended
        self._frames = Frames()

    async def run(self) -> None:
        """Get a slot, open the WebSocket, and pass what is said until it ends.

        Raises a CotenantError only while the client's offer is not accepted.
        """
        proxy = self._proxy
        begun_at = asyncio.get_running_loop().time()
        granted_at: float | None = None
        options = read_request_options(self._headers, {}, proxy.key)
        name = proxy.router.resolve(str(self._target.passed_to))
        counters = proxy.counters.of(name)
        reserved = proxy.admit(self._target, {}, 0, begun_at)
        status = CLIENT_CLOSED_REQUEST
        try:
            lease = await self._lease(name, options.terms)
            if lease is None:
                return
            granted_at = asyncio.get_running_loop().time()
            counters.in_flight += 1
            try:
                await self._open(lease)
                status = _SWITCHING
            finally:
                counters.in_flight -= 1
                lease.release()
        except CotenantError as error:
            status = http_problem(error).status
            raise
        finally:
            counters.by_class[0 if status == CLIENT_CLOSED_REQUEST else status // 100] += 1
            now = asyncio.get_running_loop().time()
            record = RequestRecord(begun_at, granted_at, now, name, status, 0, 0, options.terms)
            proxy.record(record, reserved)

    async def _lease(self, name: str, terms: LeaseTerms) -> Lease | None:
        """Return a lease, None if the client leaves first."""
        lease = self._proxy.router.try_lease(name, terms)
        if lease is not None:
            return lease
        wait = LeaseWait(self._proxy.router, self._proxy.counters.of(name), name, terms)
        self._tunnel.when_ended(wait.cancel)
        return await wait.lease(None, _nothing)

    async def _open(self, lease: Lease) -> None:
        """Make the offer to the engine; if it accepts, pass what is said. Raises what explains why not."""
        try:
            reader, writer = await open_stream(lease.endpoint, self._proxy.pool.connect_timeout_s)
            try:
                writer.write(websocket_head(self._target, lease.endpoint, self._headers))
                head = await _accepted(reader, lease.silence_s)
                self._tunnel.open(head)
                await self._pass(lease, reader, writer)
            finally:
                writer.transport.abort()
        except UpstreamFailed as failure:
            raise await lease.death(self._proxy.timing.notice_s) or failure from None

    async def _pass(self, lease: Lease, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up = asyncio.create_task(self._pass_up(writer))
        down = asyncio.create_task(self._pass_down(reader))
        ended = asyncio.create_task(self._ended())
        tasks = {up, down, ended}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if down in done and up not in done and not self._frames.is_closing:
                death = await lease.death(self._proxy.timing.notice_s)
                self._close(death or UpstreamFailed("the engine closed the connection"))
            elif ended in done and up not in done:
                self._close(ended.result())
        except asyncio.CancelledError:
            self._close(ShuttingDown("the daemon is shutting down"))
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _pass_up(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await self._tunnel.read():
                writer.write(data)
                await writer.drain()

    async def _pass_down(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                self._frames.feed(data)
                self._tunnel.send(data)
                await self._tunnel.drain()

    def _close(self, why: CotenantError) -> None:
        """Tell the client why; not within what the engine was saying, where it would not be understood."""
        if not self._frames.at_boundary or self._frames.is_closing:
            return
        gone = isinstance(why, ModelUnloaded | ShuttingDown)
        failed = isinstance(why, EngineDied | UpstreamFailed)
        self._tunnel.send(
            close_frame(_GOING_AWAY if gone else _BROKEN if failed else _NOT_ALLOWED, why.message)
        )


async def _accepted(reader: asyncio.StreamReader, within_s: float) -> bytes:
    """Return the head by which the engine accepts, for the client. Raises UpstreamFailed."""
    try:
        async with asyncio.timeout(within_s):
            head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise UpstreamFailed("the engine does not answer the offer of a WebSocket") from None
    first, *lines = head[:-4].split(b"\r\n")
    if first.split(b" ")[1:2] != [b"101"]:
        answer = printable(first.decode("latin-1"))[:80]
        raise UpstreamFailed(f"the engine refuses a WebSocket at this path: it answers {answer!r}")
    kept = [line for line in lines if line.lower().startswith(_OF_HANDSHAKE)]
    return b"\r\n".join((b"HTTP/1.1 101 Switching Protocols", *kept, b"", b""))


async def _nothing(_: bytes) -> None:
    """Send nothing during the wait: the offer is answered at its end."""
