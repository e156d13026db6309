"""The APIs that clients use: which of their paths are forwarded to engines, and the form of their errors.

Engines get requests in the client's dialect, except Ollama's, which is translated (`gateway/ollama`). Some
engines do not support all paths: their errors about that become NotOffered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cotenant.asgi import JSON_TYPE, Message, Send, encode_json
from cotenant.domain.models import ModelKind
from cotenant.gateway.http.problems import error_in

_GENERATING: Final = frozenset({ModelKind.TEXT})
_READING: Final = frozenset({ModelKind.TEXT, ModelKind.EMBEDDING, ModelKind.RERANK})


@dataclass(frozen=True, slots=True)
class Target:
    """A path that is forwarded to engines.

    `kinds` are the kinds of models that support it. `everywhere` means that all engines support it, `streams`
    that a request may ask for an event stream, `in_anthropic` that errors are in Anthropic's form. With
    `has_files`, the body may be form data, whose files are not held in memory. What is `passed_to` a model's
    engine, with whatever `method`, is not read, and neither is the response.
    """

    path: bytes
    kinds: frozenset[ModelKind]
    everywhere: bool = False
    streams: bool = False
    in_anthropic: bool = False
    has_files: bool = False
    method: str = "POST"
    passed_to: str | None = None

    def event(self, body: bytes) -> bytes:
        """Encode an error in OpenAI's form, or a complete response, as an event of this dialect's streams."""
        if self.in_anthropic and (error := error_in(body)) is not None:
            return b"event: error\ndata: " + anthropic_error(error_status(error), body) + b"\n\n"
        return b"data: " + body + b"\n\n"


CHAT: Final = Target(b"/v1/chat/completions", _GENERATING, everywhere=True, streams=True)
COMPLETIONS: Final = Target(b"/v1/completions", _GENERATING, everywhere=True, streams=True)
EMBEDDINGS: Final = Target(b"/v1/embeddings", frozenset({ModelKind.EMBEDDING}), everywhere=True)
_RERANK: Final = Target(b"/v1/rerank", frozenset({ModelKind.RERANK}))
_RESPONSES: Final = Target(b"/v1/responses", _GENERATING, streams=True)
_MESSAGES: Final = Target(b"/v1/messages", _GENERATING, streams=True, in_anthropic=True)
_COUNT: Final = Target(b"/v1/messages/count_tokens", _GENERATING, in_anthropic=True)
SPEECH: Final = Target(b"/v1/audio/speech", frozenset({ModelKind.SPEECH}), streams=True)
TRANSCRIPTIONS: Final = Target(
    b"/v1/audio/transcriptions", frozenset({ModelKind.TRANSCRIPTION}), streams=True, has_files=True
)
IMAGES: Final = Target(b"/v1/images/generations", frozenset({ModelKind.IMAGE}), streams=True)
_OTHERS: Final = (
    SPEECH,
    TRANSCRIPTIONS,
    IMAGES,
    Target(b"/v1/audio/translations", TRANSCRIPTIONS.kinds, has_files=True),
    Target(b"/v1/images/edits", IMAGES.kinds, streams=True, has_files=True),
    Target(b"/v1/images/variations", IMAGES.kinds, has_files=True),
    Target(b"/v1/moderations", _GENERATING),
    Target(b"/v1/chat/completions/input_tokens", _GENERATING),
    Target(b"/v1/responses/input_tokens", _GENERATING),
    Target(b"/infill", _GENERATING, streams=True),
    Target(b"/completion", _GENERATING, streams=True),
    Target(b"/embedding", EMBEDDINGS.kinds),
    Target(b"/apply-template", _GENERATING),
    Target(b"/tokenize", _READING),
    Target(b"/detokenize", _READING),
)

TARGETS: Final[Mapping[str, Target]] = {
    **{
        target.path.decode(): target
        for target in (CHAT, COMPLETIONS, EMBEDDINGS, _RERANK, _RESPONSES, _MESSAGES, _COUNT, *_OTHERS)
    },
    **dict.fromkeys(("/rerank", "/reranking", "/v1/reranking"), _RERANK),
}
"""The paths that are forwarded to engines without translation, by the client's path."""

ErrorForm = Callable[[int, bytes], bytes]
"""Converts an error with a status from OpenAI's form to that of another dialect."""

_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(status: int, body: bytes) -> bytes:
    """Encode an error in Anthropic's form, with the cause of an engine's end if it is known."""
    usual = "invalid_request_error" if status < 500 else "api_error"
    rendered = {"type": _ANTHROPIC_TYPES.get(status, usual), "message": message_of(body), **_cause_in(body)}
    return encode_json({"type": "error", "error": rendered})


def ollama_error(status: int, body: bytes) -> bytes:
    """Encode an error in Ollama's form, with the cause of an engine's end if it is known."""
    return encode_json({"error": message_of(body), **_cause_in(body)})


def message_of(body: bytes) -> str:
    """Return the message of an error in any dialect."""
    error = error_in(body)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else body.decode("utf-8", "replace")


def is_foreign(status: int, body: bytes) -> bool:
    """Whether an engine's error means that it does not support the path or the method."""
    if status == 404:
        return error_in(body) is None or message_of(body) in ("File Not Found", "Not Found")
    return status in (405, 501)


class ErrorTranslator:
    """Forwards a response, with errors converted to another dialect. `started` is set once it has begun."""

    def __init__(self, send: Send, form: ErrorForm) -> None:
        self._send = send
        self._form = form
        self._head: Message | None = None
        self._body = b""
        self.started = False

    async def __call__(self, message: Message) -> None:
        """Receive the next message of the response."""
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._head = message
        elif self._head is None:
            self.started = True
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._head)

    async def _send_error(self, head: Message) -> None:
        self.started = True
        body = self._form(head["status"], self._body)
        kept = [header for header in head["headers"] if header[0] not in (b"content-type", b"content-length")]
        headers = [*kept, JSON_TYPE, (b"content-length", b"%d" % len(body))]
        await self._send({**head, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _cause_in(body: bytes) -> dict[str, str]:
    error = error_in(body)
    cause = error.get("cause") if isinstance(error, dict) else None
    return {"cause": cause} if isinstance(cause, str) else {}


def error_status(error: Any) -> int:
    """Return the status in an engine's error, else 502."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else 502
