"""Plain responses that are requested from the engine as streams and assembled here.

llama.cpp stops a stream within 0.1 s of its reader's disconnect. For a plain request it checks only after a
second without results in any slot: while others stream, it generates to the last token although no one reads.
So a plain request that may run long is sent as a stream, which costs 5 µs per token. A short one is forwarded
unchanged: its own limit bounds the waste.

Only llama.cpp's own servers are asked so (`EngineTraits.outruns_clients`). Others stop when their client
disconnects, and some refuse streams, or stream what they do not say in a plain response.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from cotenant.asgi import encode_json
from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.inference.deltas import Pieces, finish, join
from cotenant.gateway.inference.dialects import error_status

SHORT_TOKENS: Final = 256
"""A request that is limited to this many tokens is forwarded unchanged."""

_RESPONSES_PATH: Final = b"/v1/responses"
_MESSAGES_PATH: Final = b"/v1/messages"
TOKEN_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
"""What limits the tokens of an answer in any API that llama.cpp takes."""
_WITH_USAGE_OPTION: Final = frozenset([b"/v1/chat/completions", b"/v1/completions"])
_ASSEMBLED: Final = _WITH_USAGE_OPTION | {_RESPONSES_PATH, _MESSAGES_PATH}
_AS_STREAM: Final = b'{"stream":true,'
_WITH_USAGE: Final = b'{"stream":true,"stream_options":{"include_usage":true},'
_PREFIX: Final = b"data:"
_DONE: Final = b"[DONE]"
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_TEXTS: Final = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_PARTIAL: Final = "partial_json"


def stream_body(path: bytes, request: Mapping[str, Any], body: bytes) -> bytes | None:
    """Return the body that requests the same response as a stream, or None to forward the request unchanged.

    Requests for several answers, background requests, and those with fields of unexpected types are
    forwarded unchanged.
    """
    if path not in _ASSEMBLED or request.get("stream") or not request:
        return None
    if request.get("n", 1) not in (1, None) or isinstance(request.get("prompt"), list):
        return None
    if request.get("background"):
        return None
    for name in TOKEN_LIMITS:
        limit = request.get(name)
        if limit is not None and (not isinstance(limit, int) or 0 <= limit <= SHORT_TOKENS):
            return None
    if "stream" in request or "stream_options" in request:
        usage = {"stream_options": {"include_usage": True}} if path in _WITH_USAGE_OPTION else {}
        return json.dumps({**request, "stream": True, **usage}).encode()
    return (_WITH_USAGE if path in _WITH_USAGE_OPTION else _AS_STREAM) + body[body.index(b"{") + 1 :]


def assemble(path: bytes, events: bytes) -> tuple[int, bytes]:
    """Return the status and JSON body of the response that a finished stream contains.

    An error event becomes that error. Raises UpstreamFailed if the stream ended early or has events of an
    unknown shape.
    """
    try:
        return _ASSEMBLERS.get(path, _completion)(events)
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError):
        raise UpstreamFailed("the engine's stream has events of an unknown shape") from None


def _completion(events: bytes) -> tuple[int, bytes]:
    """Return the status and JSON body of the completion that a finished stream contains."""
    answer: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    for event in _events_in(events):
        if event.get("error"):
            return error_status(event["error"]), json.dumps({"error": event["error"]}).encode()
        pieces = event.pop("choices", None) or ()
        _update(answer, event)
        for piece in pieces:
            _join_choice(choice, piece)
    if choice.get("finish_reason") is None:
        # Some servers end with [DONE] and give no reason; what broke off has neither.
        if not choice or not events.rstrip().endswith(_DONE):
            raise UpstreamFailed("the engine's stream ended before the answer was complete")
        choice["finish_reason"] = "stop"
    if "text" in choice:
        choice["text"] = "".join(choice["text"])
    if "message" in choice:
        finish(choice["message"])
        if not choice["message"].get("tool_calls", True):
            del choice["message"]["tool_calls"]
    if answer.get("object") == "chat.completion.chunk":
        answer["object"] = "chat.completion"
    return 200, encode_json({"choices": [choice], **answer})


def _update(known: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Take the fields that are not null; null does not undo what came before."""
    for name, value in fields.items():
        if value is not None or name not in known:
            known[name] = value


def _events_in(stream: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects in a stream's events. Raises UpstreamFailed for invalid JSON."""
    try:
        for line in stream.split(b"\n"):
            if not line.startswith(_PREFIX) or line[len(_PREFIX) :].strip() == _DONE:
                continue
            event = json.loads(line[len(_PREFIX) :])
            if isinstance(event, dict):
                yield event
    except ValueError:
        raise UpstreamFailed("the engine's stream is not made of JSON events") from None


def _join_choice(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        if name == "delta":
            message = choice.setdefault("message", {"role": "", "content": Pieces()})
            join(message, value or {})
            message["role"] = message["role"] or "assistant"
        elif name == "text":
            choice.setdefault("text", []).append(value or "")
        elif name == "logprobs":
            _join_logprobs(choice, value)
        else:
            _update(choice, {name: value})


def _join_logprobs(choice: dict[str, Any], piece: dict[str, Any] | None) -> None:
    if piece is None:
        choice.setdefault("logprobs", None)
        return
    joined = choice["logprobs"] = choice.get("logprobs") or {}
    for name, values in piece.items():
        if isinstance(values, list):
            joined.setdefault(name, []).extend(values)
        else:
            joined[name] = values


def _response(events: bytes) -> tuple[int, bytes]:
    """Return the complete response, which is in the last event of a stream."""
    for event in _events_in(events):
        if event.get("error") or event["type"] == "error":
            return _error(event.get("error") or event)
        if event["type"] in _ENDS:
            return 200, _usage_last(event["response"])
    raise UpstreamFailed("the engine's stream ended before the answer was complete")


def _message(events: bytes) -> tuple[int, bytes]:
    """Assemble a message from its start, the pieces of its blocks, and its end."""
    message: dict[str, Any] = {}
    for event in _events_in(events):
        kind = event.get("type")
        if event.get("error") or kind == "error":
            return _error(event.get("error") or event)
        if kind == "message_start":
            message = {**event["message"], "content": []}
        elif kind == "content_block_start":
            message["content"].append(dict(event["content_block"]))
        elif kind == "content_block_delta":
            _add(message["content"][event["index"]], event["delta"])
        elif kind == "message_delta":
            message.update(event["delta"])
            message["usage"] = {**(message.get("usage") or {}), **(event.get("usage") or {})}
    if message.get("stop_reason") is None:
        raise UpstreamFailed("the engine's stream ended before the answer was complete")
    for block in message["content"]:
        _finish_block(block)
    return 200, _usage_last(message)


def _add(block: dict[str, Any], delta: Mapping[str, Any]) -> None:
    kind = delta["type"]
    if kind in _TEXTS:
        name = _TEXTS[kind]
        block.setdefault(f"{name} pieces", []).append(delta[name])
    elif kind == "input_json_delta":
        block.setdefault(_PARTIAL, []).append(delta[_PARTIAL])
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
    else:
        raise LookupError(kind)


def _finish_block(block: dict[str, Any]) -> None:
    """Join the pieces of a block to one text, and parse a tool's input."""
    for name in _TEXTS.values():
        pieces = block.pop(f"{name} pieces", None)
        if pieces is not None:
            block[name] = block.get(name, "") + "".join(pieces)
    arguments = "".join(block.pop(_PARTIAL, ()))
    if arguments:
        block["input"] = json.loads(arguments)


def _usage_last(answer: Mapping[str, Any]) -> bytes:
    """Encode a response with `usage` at the end, where the tokens are counted."""
    return encode_json(dict(sorted(answer.items(), key=lambda item: item[0] == "usage")))


def _error(error: Any) -> tuple[int, bytes]:
    return error_status(error), encode_json({"error": error})


_ASSEMBLERS: Final[Mapping[bytes, Callable[[bytes], tuple[int, bytes]]]] = {
    _RESPONSES_PATH: _response,
    _MESSAGES_PATH: _message,
}
