"""Plain responses in each dialect, assembled from engines' streams (see `assembly`)."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from cotenant.asgi import encode_json
from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.inference.assembly import (
    MESSAGES_PATH,
    RESPONSES_PATH,
    assemble_completion,
    events_in,
)
from cotenant.gateway.inference.dialects import error_status

_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_TEXTS: Final = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_PARTIAL: Final = "partial_json"


def assemble(path: bytes, events: bytes) -> tuple[int, bytes]:
    """Return the status and JSON body of the response that a finished stream contains.

    An error event becomes that error. Raises UpstreamFailed if the stream ended early or has events of an
    unknown shape.
    """
    try:
        return _ASSEMBLERS.get(path, assemble_completion)(events)
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError):
        raise UpstreamFailed("the engine's stream has events of an unknown shape") from None


def _response(events: bytes) -> tuple[int, bytes]:
    """Return the complete response, which is in the last event of a stream."""
    for event in events_in(events):
        if event.get("error") or event["type"] == "error":
            return _error(event.get("error") or event)
        if event["type"] in _ENDS:
            return 200, _usage_last(event["response"])
    raise UpstreamFailed("the engine's stream ended before the answer was complete")


def _message(events: bytes) -> tuple[int, bytes]:
    """Assemble a message from its start, the pieces of its blocks, and its end."""
    message: dict[str, Any] = {}
    for event in events_in(events):
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
        _finish(block)
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


def _finish(block: dict[str, Any]) -> None:
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
    RESPONSES_PATH: _response,
    MESSAGES_PATH: _message,
}
