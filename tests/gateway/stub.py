"""An engine for tests: a real HTTP server that answers, stalls or breaks as each test scripts it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint

ANSWER = b'{"object":"chat.completion","choices":[]}'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
    b"Access-Control-Allow-Origin: *\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@dataclass
class Call:
    """One request as it came, and the way to answer it. `closed` is set when the gateway has closed."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    body: bytes
    connection: int
    writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_event(self, data: bytes) -> None:
        await self.send(chunk(b"data: " + data + b"\n\n"))


Script = Callable[[Call], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def response(body: bytes, status: bytes = b"200 OK", *, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %b\r\nServer: llama.cpp\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        kind,
        len(body),
        body,
    )


async def answer(call: Call) -> None:
    """Answer a small JSON object."""
    await call.send(response(ANSWER))


async def stream_then_close(call: Call) -> None:
    """Stream three events and close, as llama.cpp does."""
    await call.send(STREAM_HEAD)
    for word in (b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}' % w for w in (b"a", b"b", b"c")):
        await call.send_event(word)
    await call.send_event(b"[DONE]")
    await call.send(b"0\r\n\r\n")
    call.writer.close()


async def never_answer(call: Call) -> None:
    """Say nothing until the gateway closes."""
    await call.closed.wait()


async def stream_for_ever(call: Call) -> None:
    """Send one event and then nothing until the gateway closes."""
    await call.send(STREAM_HEAD)
    await call.send_event(b'{"choices":[]}')
    await call.closed.wait()


class StubEngine:
    """Serves `script` and keeps what came in `calls`. Requests come to it as to an engine of `kind`."""

    def __init__(self, script: Script = answer, kind: EngineKind | None = EngineKind.LLAMA_CPP) -> None:
        self.script = script
        self.kind = kind
        self.calls: list[Call] = []
        self.connections = 0
        self._arrived = asyncio.Condition()

    async def __aenter__(self) -> StubEngine:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048)
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = Endpoint("127.0.0.1", port, kind=self.kind)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for call in self.calls:
            call.closed.set()
            call.writer.transport.abort()

    async def call(self, number: int = 0) -> Call:
        """Return a request by its number, when it has come."""
        async with self._arrived:
            await asyncio.wait_for(self._arrived.wait_for(lambda: len(self.calls) > number), 60)
        return self.calls[number]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = self.connections
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                call = await self._read(reader, writer, connection)
                async with self._arrived:
                    self.calls.append(call)
                    self._arrived.notify_all()
                listening = asyncio.ensure_future(_await_end(reader, call))
                await self.script(call)
                if writer.is_closing():
                    await listening
                    return
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening
        writer.close()

    async def _read(self, reader, writer, connection) -> Call:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.rstrip().split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b": ")
            headers[name.lower()] = value
        body = await reader.readexactly(int(headers[b"content-length"]))
        method, path, _ = first.split(b" ")
        return Call(method, path, headers, body, connection, writer)


async def _await_end(reader: asyncio.StreamReader, call: Call) -> None:
    # The gateway sends nothing while it waits for an answer, so whatever ends this is the end.
    with contextlib.suppress(ConnectionError):
        while not reader.at_eof():
            await reader._wait_for_data("await_end")
    call.closed.set()
