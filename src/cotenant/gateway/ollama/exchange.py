"""Forwards a translated request to an engine, and the response back in Ollama's form.

The Exchange handles the request like any other: its wait, its lease, a retry if the engine dies, and the
client's disconnect.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cotenant.asgi import JSON_TYPE, Header, Message, Send, encode_json, send_json
from cotenant.domain.errors import UpstreamFailed
from cotenant.domain.units import MIB, format_bytes
from cotenant.gateway.http.problems import encode_error
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.inference.dialects import Target, ollama_error
from cotenant.gateway.inference.proxy import Exchange
from cotenant.gateway.inference.shared import Proxy
from cotenant.gateway.ollama.models import rendered
from cotenant.gateway.ollama.responses import StreamPiece, StreamReader, counts

NDJSON: Final[Header] = (b"content-type", b"application/x-ndjson")
_MAX_BYTES: Final = 256 * MIB
_OK: Final = 200
_FIELDS: Final = (b"data:", b"event:", b"id:", b":")
"""How a stream begins, which some servers send as another type of content."""
_OF_BODY: Final = frozenset({b"content-type", b"content-encoding"})

Wrap = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]
"""Makes the part of a line with the answer, the thinking before it, and tool calls."""


@dataclass
class LineSender:
    """Converts an engine's stream to Ollama's: a line for each piece, or one object at the end.

    `waited_s` is called at the end and returns how long the request waited for its model.
    """

    _send: Send
    _model: str
    _wrap: Wrap
    _waited_s: Callable[[], float]
    _streaming: bool
    _now: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    _first_at: float | None = None
    _reader: StreamReader = field(default_factory=StreamReader)
    _added: list[StreamPiece] = field(default_factory=list)
    _whole: list[bytes] | None = None
    _size: int = 0
    _passing: bool = False
    _begun: bool = False
    _ended: bool = False

    def __post_init__(self) -> None:
        self._began_at = self._now()

    async def __call__(self, message: Message) -> None:
        """Receive the next message of the Exchange."""
        if message["type"] == "http.response.start":
            self._passing = message["status"] != _OK
            kind = dict(message["headers"]).get(b"content-type", b"").lower()
            self._whole = None if kind.startswith(b"text/event-stream") else []
        if self._passing:
            await self._send(message)
        elif message["type"] == "http.response.body" and not self._ended:
            try:
                await self._take(message.get("body", b""), more=message.get("more_body", False))
            except UpstreamFailed as error:
                await self._fail(error.message)

    async def _take(self, piece: bytes, *, more: bool) -> None:
        self._size += len(piece)
        _check_size(self._size)
        if self._whole == [] and piece.startswith(_FIELDS):
            self._whole = None
        if self._whole is not None:
            # The single object of an engine that does not stream is read as a stream with one event.
            self._whole.append(piece)
            piece = b"" if more else b"data: " + b"".join(self._whole).replace(b"\n", b" ") + b"\n"
        for added in self._reader.read(piece, last=not more):
            if self._first_at is None:
                self._first_at = self._now()
            if self._streaming:
                await self._line(self._part(added, []), more=True)
            else:
                self._added.append(added)
        if self._reader.error is not None:
            raise UpstreamFailed(self._reader.error)
        if not more:
            await self._finish()

    async def _finish(self) -> None:
        if self._reader.finish_reason is None:
            raise UpstreamFailed("the engine's stream ended before the answer was complete")
        calls = self._reader.calls()
        if calls and self._streaming:
            await self._line(self._part(StreamPiece(), calls), more=True)
            calls = []
        self._ended = True
        whole = StreamPiece(
            "".join(added.answer for added in self._added),
            "".join(added.thoughts for added in self._added),
            [each for added in self._added for each in added.probabilities],
        )
        last = {
            **self._part(whole, calls),
            "done": True,
            "done_reason": "length" if self._reader.finish_reason == "length" else "stop",
            **counts(self._reader, self._began_at, self._waited_s(), self._first_at, self._now()),
        }
        if self._streaming:
            await self._line(last, more=False)
        else:
            await send_json(self._send, _OK, {**self._head(), **last})

    async def _fail(self, why: str) -> None:
        """Send an error: as a response if nothing was sent yet, else as the last line."""
        self._ended = True
        error = encode_error(why, "server_error", None, "upstream_failed", self._reader.cause)
        if self._begun:
            await self._send({"type": "http.response.body", "body": ollama_error(_OK, error) + b"\n"})
        else:
            await self._send({"type": "http.response.start", "status": 502, "headers": [JSON_TYPE]})
            await self._send({"type": "http.response.body", "body": error})

    async def _line(self, part: dict[str, Any], *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            await self._send({"type": "http.response.start", "status": _OK, "headers": [NDJSON]})
        line = encode_json({**self._head(), **part}) + b"\n"
        await self._send({"type": "http.response.body", "body": line, "more_body": more})

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": timestamp()}

    def _part(self, added: StreamPiece, calls: list[dict[str, Any]]) -> dict[str, Any]:
        part = {**self._wrap(added.answer, added.thoughts, calls), "done": False}
        return {**part, "logprobs": added.probabilities} if added.probabilities else part


class BufferedResponse:
    """Buffers an engine's response. `status` is None until it begins."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._head: Message = {}
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self._pieces)

    async def __call__(self, message: Message) -> None:
        """Receive the next message of the Exchange."""
        if message["type"] == "http.response.start":
            self._head, self.status = message, message["status"]
            return
        piece = message.get("body", b"")
        self._size += len(piece)
        if self._size <= _MAX_BYTES:
            self._pieces.append(piece)

    async def forward(self, send: Send) -> None:
        """Forward the response unchanged, if there is one."""
        if self.status is not None:
            await send(self._head)
            await send({"type": "http.response.body", "body": self.body})

    def payload(self) -> dict[str, Any]:
        """Parse the body as a JSON object. Raises UpstreamFailed if it is not one, or too large."""
        _check_size(self._size)
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            raise UpstreamFailed("the engine's answer is not JSON") from None
        if not isinstance(found, dict):
            raise UpstreamFailed("the engine's answer is not a JSON object")
        return found


def exchange(
    proxy: Proxy,
    request: ApiRequest,
    target: Target,
    engine_request: Mapping[str, Any],
    send: Send,
    *,
    buffered: bool = True,
) -> Exchange:
    """Make the Exchange of a translated request, with the lease options in the client's headers."""
    # Many clients, such as curl, send another content type, or none; the new body is not compressed.
    headers: list[Header] = [header for header in request.headers if header[0] not in _OF_BODY]
    headers.append((b"content-type", b"application/json"))
    body = json.dumps(engine_request).encode()
    translated = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(translated, None) or await request.receive()

    return Exchange(proxy, target, headers, receive, send, True, buffered)


def as_chat(answer: str, thoughts: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Wrap an answer in the form of /api/chat."""
    message: dict[str, Any] = {"role": "assistant", "content": answer}
    if thoughts:
        message["thinking"] = thoughts
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def as_generated(answer: str, thoughts: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Wrap an answer in the form of /api/generate, which has no tools."""
    return {"response": answer, **({"thinking": thoughts} if thoughts else {})}


def _check_size(size_bytes: int) -> None:
    if size_bytes > _MAX_BYTES:
        raise UpstreamFailed(f"the engine's answer is over {format_bytes(_MAX_BYTES)}")


def timestamp() -> str:
    """Return the current time in Ollama's format."""
    return rendered(datetime.now(UTC))
