"""A load generator that costs little: keep-alive connections, each with one request out at a time."""

import asyncio
import time
from dataclasses import dataclass

_HOST = "127.0.0.1"
_EVENT_START = b"data: {"


@dataclass(slots=True)
class Tally:
    """What came back in `seconds`: responses and stream events; `all_…` counts the warm-up too."""

    responses: int = 0
    events: int = 0
    all_responses: int = 0
    all_events: int = 0
    seconds: float = 0.0
    failure: str | None = None


def request(*, events: int | None = None, pace_s: float = 0.0) -> bytes:
    """Render a small chat completion request as an openai client sends it, less its own headers.

    With `events` it asks for a stream of so many.
    """
    message = b'{"model":"stub","messages":[{"role":"user","content":"Tell me a story."}],'
    if events is None:
        body = message + b'"stream":false,"max_tokens":16}'
    else:
        body = message + b'"stream":true,"max_tokens":%d,"pace_s":%b}' % (events, str(pace_s).encode())
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Accept: application/json\r\nUser-Agent: load\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


class _Client(asyncio.Protocol):
    """Sends a request, finds the end of its answer with as little parsing as can be, and sends the next."""

    def __init__(self, payload: bytes, tally: Tally, stopped: asyncio.Event) -> None:
        self._payload = payload
        self._tally = tally
        self._stopped = stopped
        self._missing = 0
        self._head = b""
        self._tail = b""
        self._chunked = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self._transport = transport
        transport.write(self._payload)

    def data_received(self, data):
        if self._missing == 0 and not self._chunked:
            data = self._read_head(data)
            if data is None:
                return
        if self._chunked:
            # The terminal chunk may be cut in two by the socket.
            self._tally.events += data.count(_EVENT_START)
            self._tail = (self._tail + data)[-7:]
            if self._tail == b"\r\n0\r\n\r\n":
                self._done()
        else:
            self._missing -= len(data)
            if self._missing == 0:
                self._done()

    def _read_head(self, data):
        head, found, rest = (self._head + data).partition(b"\r\n\r\n")
        if not found:
            self._head = head
            return None
        self._head = b""
        if not head.startswith(b"HTTP/1.1 200"):
            self._tally.failure = f"{head[:80]!r} {rest[:200]!r}"
            self._transport.abort()
            return None
        head = head.lower()
        at = head.find(b"content-length: ")
        if at < 0:
            self._chunked = True
            self._tail = b""
        else:
            self._missing = int(head[at + 16 :].split(b"\r\n", 1)[0])
        return rest

    def _done(self):
        self._chunked = False
        self._tally.responses += 1
        if self._stopped.is_set():
            self._transport.close()
        else:
            self._transport.write(self._payload)

    def connection_lost(self, exc):
        if not self.lost.done():
            self.lost.set_result(None)


async def drive(port: int, payload: bytes, *, connections: int, seconds: float) -> Tally:
    """Keep `connections` busy for `seconds` and count what comes back."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    stopped = asyncio.Event()
    made = [
        await loop.create_connection(lambda: _Client(payload, tally, stopped), _HOST, port)
        for _ in range(connections)
    ]
    await asyncio.sleep(0.2)  # warm
    started, first = time.perf_counter(), (tally.responses, tally.events)
    await asyncio.sleep(seconds)
    tally.seconds = time.perf_counter() - started
    counted = (tally.responses - first[0], tally.events - first[1])
    stopped.set()
    for transport, client in made:
        if client.lost.done():
            raise RuntimeError(f"a connection was lost under load: {tally.failure}")
        transport.abort()
    await asyncio.gather(*(client.lost for _, client in made))
    return Tally(*counted, all_responses=tally.responses, all_events=tally.events, seconds=tally.seconds)


async def first_byte_times(port: int, *, count: int) -> list[float]:
    """Return seconds from a request to the first byte of its stream's body, one request after another."""
    reader, writer = await asyncio.open_connection(_HOST, port)
    payload = request(events=2)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        writer.write(payload)
        await reader.readuntil(_EVENT_START)
        times.append(time.perf_counter() - started)
        await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return times
