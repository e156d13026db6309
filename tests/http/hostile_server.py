"""A server on a real socket that answers every request with a script of its own."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from cotenant.domain.engines import Endpoint

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class HostileServer:
    """Keeps what it was sent in `requests`. `closed` is set when a client has closed its connection."""

    script: Script
    endpoint: Endpoint = field(init=False)
    requests: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await self.script(writer)
            while await reader.read(65536):
                pass
        self.closed.set()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def hostile(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[HostileServer]:
    server = HostileServer(script)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.endpoint = Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1], tls=tls is not None)
    try:
        yield server
    finally:
        listening.close()


def sends(*pieces: bytes, close: bool = False, reset: bool = False) -> Script:
    """Send pieces, and keep the connection open unless told otherwise."""

    async def script(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            # So that each piece is a read of its own as often as the kernel allows.
            await asyncio.sleep(0)
        if reset:
            writer.transport.abort()
        elif close:
            writer.close()

    return script


def sends_for_ever(start: bytes, repeated: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(repeated)
            await writer.drain()
            await asyncio.sleep(0)

    return script
