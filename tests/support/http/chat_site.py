"""A small OpenAI-compatible server on a real socket, to be benchmarked, and to misbehave when told."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from cotenant.clock import ManualClock


@dataclass
class ChatSite:
    """Streams as many tokens as asked for, two to a piece. `one_at_a_time` makes models share it.

    A name in `failing` is answered with status 500. `usage` False leaves the counts out.
    """

    models: tuple[str, ...] = ("a", "b", "c")
    usage: bool = True
    failing: set[str] = field(default_factory=set)
    one_at_a_time: bool = False
    token_s: float = 0.0
    clock: ManualClock | None = None
    """Moved forward by each token, in place of waiting for it."""
    raw: Callable[[str], bytes] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    now: dict[str, int] = field(default_factory=dict)
    most_at_once: dict[str, int] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    url: str = ""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            self.paths.append(f"{method} {path}")
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            self.keys.add(fields.get("Authorization", ""))
            body = await reader.readexactly(int(fields.get("Content-Length", 0)))
            if self.raw is not None:
                writer.write(self.raw(path))
            elif path == "/v1/models":
                self._send(writer, 200, {"data": [{"id": name} for name in self.models]})
            elif path == "/v1/chat/completions":
                await self._chat(json.loads(body), writer)
            else:
                self._send(writer, 404, {"error": {"message": f"no {path}"}})
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _chat(self, payload: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.asked.append(payload)
        name = payload["model"]
        if name in self.failing:
            return self._send(writer, 500, {"error": {"message": f"{name} is broken"}})
        self.now[name] = self.now.get(name, 0) + 1
        self.most_at_once[name] = max(self.most_at_once.get(name, 0), self.now[name])
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            tokens = payload["max_tokens"]
            for _ in range((tokens + 1) // 2):
                await self._pace()
                self._event(writer, {"choices": [{"delta": {"content": "la la "}}]})
                await writer.drain()
            if self.usage:
                words = len(payload["messages"][0]["content"].split())
                self._event(writer, {"choices": [], "usage": _usage(2 * words, tokens)})
            writer.write(b"data: [DONE]\n\n")
        finally:
            self.now[name] -= 1
        return None

    async def _pace(self) -> None:
        if self.one_at_a_time:
            async with self._turn:
                await self._pass_time()
        else:
            await self._pass_time()

    async def _pass_time(self) -> None:
        if self.clock is None:
            await asyncio.sleep(self.token_s)
        else:
            await asyncio.sleep(0)
            self.clock.advance(self.token_s)

    @staticmethod
    def _event(writer: asyncio.StreamWriter, event: object) -> None:
        writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    @staticmethod
    def _send(writer: asyncio.StreamWriter, status: int, payload: object) -> None:
        body = json.dumps(payload).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


@asynccontextmanager
async def running(site: ChatSite) -> AsyncIterator[ChatSite]:
    """Serve on a free port while the block runs."""
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0)
    site.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield site
    finally:
        server.close()
        await asyncio.sleep(0)


@contextmanager
def running_beside(site: ChatSite) -> Iterator[ChatSite]:
    """Do as `running`, from a thread of its own, for what runs an event loop itself."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def run() -> None:
        async with running(site):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10), "it did not begin to serve"
        yield site
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}
