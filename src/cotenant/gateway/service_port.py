"""The port of a model that is a service of its own: who connects has it loaded, and is passed to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from typing import Any, Final

from cotenant.domain.errors import CotenantError, UpstreamFailed
from cotenant.gateway.http.problems import envelope, http_problem
from cotenant.gateway.inference.engine_connections import open_stream
from cotenant.gateway.shared_lease import SharedLease, SharedLeases
from cotenant.interfaces import Lease

_log = logging.getLogger("cotenant.gateway")

_MOST_CONNECTIONS: Final = 128
_PIECE_BYTES: Final = 65_536
_CONNECT_S: Final = 5.0
_UNREAD_MS: Final = 30_000
"""A client that takes nothing for so long is gone, as on the server's own port."""
_NOTICE_S: Final = 1.0
_LAST_WORD_S: Final = 5.0
"""How long a refused client has to say that it speaks HTTP, and to read why it is refused."""
_LINGER_S: Final = 10.0
"""Silence after which a client is left that does not close when the engine has: pools of clients do not."""
_HTTP: Final = re.compile(rb"[A-Z]{3,16} [^ \r\n]+ HTTP/1\.[01]\r?\n")


class ServicePort:
    """A listening socket for one model; `model` may be replaced by another one.

    Connections share a lease, so the model is loaded by the first and stays while one is open. Bytes are
    passed as they are, both ways, and so is the end of one side.
    """

    def __init__(self, model: str, leases: SharedLeases) -> None:
        self.model = model
        self._leases = leases
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        self._server = await asyncio.start_server(self._accept, sock=sock, limit=_PIECE_BYTES)

    def shut(self) -> None:
        """Accept no more; open connections stay."""
        if self._server is not None:
            self._server.close()

    async def close(self, grace_s: float = 0.0) -> None:
        """Accept no more, and end the connections after a time in which they may end by themselves."""
        self.shut()
        if self._connections:
            await asyncio.wait(self._connections, timeout=grace_s)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        if len(self._connections) == _MOST_CONNECTIONS - 1:
            _log.warning(
                "the port of %s has %d connections, and takes no more", self.model, _MOST_CONNECTIONS
            )
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shared = self._leases.of(self.model)
        shared.hold()
        holds = True
        first = asyncio.ensure_future(reader.read(_PIECE_BYTES))
        try:
            if (lease := await _granted(shared, first, writer)) is not None:
                await _pass(lease, shared.ended, first, reader, writer)
        except CotenantError as error:
            if not shared.told:
                shared.told = True
                _log.warning("who connects to the port of %s is refused: %s", shared.model, error.message)
            shared.leave()
            holds = False
            with contextlib.suppress(OSError, TimeoutError):
                await _explain(error, first, reader, writer)
        except OSError:
            pass  # The client is gone.
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            await _ended(first)
            if holds:
                shared.leave()
            writer.close()


async def _granted(
    shared: SharedLease, first: asyncio.Future[bytes], writer: asyncio.StreamWriter
) -> Lease | None:
    """Wait for the lease; None if the client leaves first. One that has asked may end its side meanwhile."""
    lost = asyncio.ensure_future(writer.wait_closed())
    try:
        waits: set[asyncio.Future[Any]] = {shared.lease, first, lost}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not shared.lease.done() and not lost.done() and first.result():
            await asyncio.wait(waits - {first}, return_when=asyncio.FIRST_COMPLETED)
        return shared.lease.result() if shared.lease.done() else None
    finally:
        await _ended(lost)


async def _pass(
    lease: Lease,
    gone: asyncio.Event,
    first: asyncio.Future[bytes],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Connect to the engine and pass what both say, until both have ended or the engine is gone."""
    try:
        from_engine, to_engine = await open_stream(lease.endpoint, _CONNECT_S)
    except UpstreamFailed as failure:
        raise await lease.death(_NOTICE_S) or failure from None
    up, down = _Way(reader, to_engine), _Way(from_engine, writer)
    tasks = [asyncio.ensure_future(each) for each in (up.run(first), down.run(), gone.wait())]
    upwards, downwards, ending = tasks
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if upwards.done() and up.is_whole:
            await asyncio.wait({downwards, ending}, return_when=asyncio.FIRST_COMPLETED)
        passed = -1
        while downwards.done() and down.is_whole and not upwards.done() and passed != up.passed:
            passed = up.passed
            await asyncio.wait({upwards, ending}, timeout=_LINGER_S, return_when=asyncio.FIRST_COMPLETED)
        if ending.done() and not downwards.done():
            await asyncio.wait({downwards}, timeout=_NOTICE_S)  # its last words
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        to_engine.transport.abort()


class _Way:
    """One direction of a connection; `is_whole` once it was passed to its end."""

    def __init__(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self.passed = 0
        self.is_whole = False
        self._source = source
        self._sink = sink

    async def run(self, first: asyncio.Future[bytes] | None = None) -> bool:
        with contextlib.suppress(OSError):
            data = await (self._source.read(_PIECE_BYTES) if first is None else first)
            while data:
                self._sink.write(data)
                self.passed += len(data)
                await self._sink.drain()
                data = await self._source.read(_PIECE_BYTES)
            if self._sink.can_write_eof():
                self._sink.write_eof()
            self.is_whole = True
        return self.is_whole


async def _explain(
    error: CotenantError,
    first: asyncio.Future[bytes],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Tell a client of HTTP why it is refused; any other one sees the connection end."""
    await asyncio.wait({first}, timeout=_LAST_WORD_S)
    if not first.done() or not _HTTP.match(first.result()):
        return
    body = envelope(error)
    headers = http_problem(error).headers(error.retry_after_s)
    lines = [
        b"HTTP/1.1 503 Service Unavailable",
        b"content-length: %d" % len(body),
        b"connection: close",
        *(b"%b: %b" % header for header in headers),
    ]
    writer.write(b"\r\n".join((*lines, b"", body)))
    writer.write_eof()
    # A socket that is closed before all was read takes back what was sent.
    async with asyncio.timeout(_LAST_WORD_S):
        while await reader.read(_PIECE_BYTES):
            pass


async def _ended(task: asyncio.Future[bytes] | asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
