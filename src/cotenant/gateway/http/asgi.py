"""The ASGI 3 interface as the rooms of the gateway share it, and how a whole answer is sent."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_TYPE: Final[Header] = (b"content-type", b"application/json")
TEXT_TYPE: Final[Header] = (b"content-type", b"text/plain; charset=utf-8")


def encode_json(payload: object) -> bytes:
    """Render a payload as compact UTF-8 JSON."""
    # Half of a surrogate pair, which a client's JSON may hold, has no UTF-8; this is JSON's escape for it.
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


async def send_body(send: Send, status: int, body: bytes, *headers: Header) -> None:
    """Send a whole response."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, payload: object, headers: Iterable[Header] = ()) -> None:
    """Send a payload as JSON."""
    await send_body(send, status, encode_json(payload), JSON_TYPE, *headers)
