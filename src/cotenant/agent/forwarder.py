"""The way from an engine of this machine to a part of its model on another: a port here, the gate there."""

import asyncio
import contextlib
import logging
import os
import ssl
from pathlib import Path
from typing import Final, cast

from cotenant.agent.splice import Splice
from cotenant.domain.engines import Endpoint, RemotePart
from cotenant.domain.errors import EngineLoadFailed
from cotenant.http.connection import notice_silence

_CONNECT_WITHIN_S: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"

_LOG = logging.getLogger(__name__)


class Forwarder:
    """Passes connections of this user's processes on to a part; others are cut off."""

    def __init__(self, part: RemotePart) -> None:
        self.part = part
        self.open_ends: set[Splice] = set()
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None

    async def open(self) -> Endpoint:
        """Listen, and return where. Raises EngineLoadFailed."""
        part, loop = self.part, asyncio.get_running_loop()
        try:
            if part.endpoint.tls:
                self._context = ssl.create_default_context(cadata=part.authorities or None)
            self._server = await loop.create_server(lambda: _Local(self), _LOOPBACK, 0)
        except OSError as error:
            raise EngineLoadFailed(f"there is no way to {part.node}: {error}") from error
        return Endpoint(_LOOPBACK, self._server.sockets[0].getsockname()[1])

    async def connect(self, remote: Splice) -> None:
        """Connect to the part, past its gate. Raises OSError."""
        endpoint, loop = self.part.endpoint, asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_WITHIN_S):
            transport, _ = await loop.create_connection(
                lambda: remote, endpoint.host, endpoint.port, ssl=self._context
            )
        notice_silence(transport.get_extra_info("socket"))
        transport.write(f"{endpoint.gate or ''}\n".encode("ascii"))

    def close(self) -> None:
        """Listen no longer, and cut every connection."""
        if self._server is not None:
            self._server.close()
        for end in [*self.open_ends]:
            end.cut()


class _Local(Splice):
    """A connection of an engine, which waits until the one to the other machine is there."""

    __slots__ = ("_buffer", "_forwarder", "_task")

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__()
        self._buffer = bytearray()
        self._forwarder = forwarder
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._forwarder.open_ends.add(self)
        self._task = asyncio.get_running_loop().create_task(self._pass_on(cast(asyncio.Transport, transport)))

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
            return
        self._buffer += data
        # Not before anything is read: uvloop would read all the same.
        cast(asyncio.Transport, self.transport).pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forwarder.open_ends.discard(self)
        if self._task is not None:
            self._task.cancel()
        super().connection_lost(exc)

    async def _pass_on(self, transport: asyncio.Transport) -> None:
        remote, part = Splice(), self._forwarder.part
        try:
            if not await asyncio.to_thread(_is_of_this_user, *_ends(transport)):
                raise PermissionError("another user's process has connected")
            await self._forwarder.connect(remote)
        except OSError as error:
            _LOG.warning("no way to the GPUs of %s: %s", part.node, error)
            remote.cut()
            self.cut()
            return
        except asyncio.CancelledError:
            remote.cut()
            raise
        if transport.is_closing():
            remote.cut()
            return
        self._task = None
        remote.other, self.other = self, remote
        super().data_received(bytes(self._buffer))
        self._buffer.clear()
        transport.resume_reading()


def _ends(transport: asyncio.Transport) -> tuple[int, int]:
    return transport.get_extra_info("peername")[1], transport.get_extra_info("sockname")[1]


def _is_of_this_user(port: int, to: int) -> bool:
    """Whether the process that has connected from a port of this machine is of our user."""
    with contextlib.suppress(OSError):
        rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        for _, local, remote, _, _, _, _, uid, *_ in map(str.split, rows):
            if local.endswith(f":{port:04X}") and remote.endswith(f":{to:04X}"):
                return int(uid) == os.getuid()
    return False
