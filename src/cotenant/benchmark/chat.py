"""One streamed chat completion, with the arrival time of each chunk."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from cotenant.benchmark.results import Completion
from cotenant.clock import Clock
from cotenant.domain.engines import Endpoint
from cotenant.http.client import Exchange, Limits, Request, describe

_MAX_ERROR_CHARS: Final = 300


class ChatFailed(Exception):
    """A request failed; the message is the server's if it sent one."""


async def chat(
    endpoint: Endpoint,
    clock: Clock,
    payload: dict[str, Any],
    timeout_s: float,
    arrived: Callable[[float], None],
) -> Completion:
    """Send a request and read the answer; `arrived` is called for every chunk. Raises ChatFailed."""
    streamed = {**payload, "stream": True, "stream_options": {"include_usage": True}}
    limits = Limits(connect_s=None, whole_s=timeout_s, body_bytes=1 << 28)
    try:
        with contextlib.closing(await Exchange.connect(endpoint, limits)) as answer:
            sent_at = clock.now()
            path, accept = "/v1/chat/completions", "text/event-stream"
            await answer.send(Request(endpoint, "POST", path, streamed, accept=accept))
            if answer.status != 200:
                raise ChatFailed(_error_text(answer.status, await answer.body()))
            return await _read(answer, clock, sent_at, arrived)
    except TimeoutError:
        raise ChatFailed(f"no complete answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ChatFailed(describe(error)) from None


async def _read(
    answer: Exchange, clock: Clock, sent_at: float, arrived: Callable[[float], None]
) -> Completion:
    arrivals: list[float] = []
    usage: dict[str, Any] = {}
    async for event in _events(answer):
        if isinstance(event.get("error"), dict):
            raise ChatFailed(str(event["error"].get("message"))[:_MAX_ERROR_CHARS])
        if isinstance(event.get("usage"), dict):
            usage = event["usage"]
        if _has_text(event):
            arrivals.append(clock.now())
            arrived(arrivals[-1])
    if not arrivals:
        raise ChatFailed("the answer had no text")
    tokens, prompt_tokens = (
        count if isinstance(count := usage.get(name), int) and count > 0 else None
        for name in ("completion_tokens", "prompt_tokens")
    )
    return Completion(sent_at, tuple(arrivals), tokens or len(arrivals), tokens is not None, prompt_tokens)


async def _events(answer: Exchange) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of an event stream until it ends."""
    rest = b""
    async for piece in answer:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b":")
            value = value.strip()
            if name != b"data" or value == b"[DONE]":
                continue
            try:
                event = json.loads(value)
            except ValueError:
                raise ChatFailed("an event of the stream is not JSON") from None
            if isinstance(event, dict):
                yield event
        if len(rest) > 1 << 20:
            raise ChatFailed("an event of the stream is too long")


def _has_text(event: dict[str, Any]) -> bool:
    match event:
        case {"choices": [{"delta": dict(delta)}, *_]}:
            return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning"))
    return False


def _error_text(status: int, body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        text = body.decode("utf-8", "replace").strip()
    return f"status {status}: {str(text)[:_MAX_ERROR_CHARS]}"
