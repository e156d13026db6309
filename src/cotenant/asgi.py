"""The types of the ASGI 3 interface, and helpers that send complete responses and endless streams."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from pydantic import BaseModel

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_TYPE: Final[Header] = (b"content-type", b"application/json")
TEXT_TYPE: Final[Header] = (b"content-type", b"text/plain; charset=utf-8")
_LAST_WRITE_S: Final = 1.0


def encode_json(payload: object) -> bytes:
    """Render a payload as compact UTF-8 JSON; dataclasses and pydantic models become objects."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), default=_plain)
    # A lone surrogate, which a client's JSON may contain, has no UTF-8 form: it becomes a JSON escape.
    return text.encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, deque):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded as JSON")


async def send_body(send: Send, status: int, body: bytes, *headers: Header) -> None:
    """Send a complete response."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, payload: object, headers: Iterable[Header] = ()) -> None:
    """Send a payload as JSON."""
    await send_body(send, status, encode_json(payload), JSON_TYPE, *headers)


async def send_head(send: Send, headers: Sequence[Header]) -> None:
    """Answer HEAD where a GET gets an endless stream."""
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b""})


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_stream(
    receive: Receive,
    send: Send,
    headers: Sequence[Header],
    pieces: AsyncGenerator[bytes, None],
    ended: Callable[[], Coroutine[Any, Any, object]],
    heartbeat_s: float | None = None,
) -> None:
    """Send pieces as they arrive, until they end, the client disconnects or `ended` returns.

    An event-stream comment is sent after every `heartbeat_s` seconds without a piece.
    """
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
    # An empty piece sends the head at once, so that the client knows that the request was accepted.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    pump = asyncio.create_task(_pump(send, pieces, heartbeat_s))
    leaving = asyncio.create_task(disconnected(receive))
    tasks = {pump, leaving, asyncio.create_task(ended())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if not pump.cancelled():
        pump.result()
    if leaving.cancelled():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_S):
                await send({"type": "http.response.body", "body": b""})


async def _pump(send: Send, pieces: AsyncGenerator[bytes, None], heartbeat_s: float | None) -> None:
    upcoming: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.create_task(next_piece(pieces))
            done, _ = await asyncio.wait({upcoming}, timeout=heartbeat_s)
            piece: bytes | None = b": alive\n\n"
            if done:
                piece, upcoming = upcoming.result(), None
            if piece is None:
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.wait({upcoming})
        await pieces.aclose()


async def next_piece(pieces: AsyncGenerator[bytes, None]) -> bytes | None:
    """Return the next piece, None when there are no more."""
    return await anext(pieces, None)
