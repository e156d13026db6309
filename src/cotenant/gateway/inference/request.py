"""Parses a client's request, and makes the head and body for the engine."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import orjson

from cotenant.asgi import Header
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadRequest, UnknownModel
from cotenant.domain.units import MIB
from cotenant.gateway.http.limits import check_values
from cotenant.gateway.http.model_list import served_name
from cotenant.gateway.inference.assembly import stream_body
from cotenant.gateway.inference.dialects import Target
from cotenant.gateway.inference.request_options import TERM_HEADERS
from cotenant.gateway.inference.request_rules import ruled
from cotenant.interfaces import Router

_NOT_FORWARDED: Final = TERM_HEADERS | frozenset(
    {
        b"accept-encoding",  # the body is forwarded unchanged, so it must not be compressed
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"host",
        b"keep-alive",
        b"origin",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
        b"x-conversation-id",  # llama.cpp would continue to generate after the client has disconnected
    }
)
_OF_BODY: Final = frozenset({b"content-type", b"content-encoding"})
_FEW_VALUES_BYTES: Final = MIB
"""A body up to this length is parsed in milliseconds, whatever is in it."""
_PLAIN_CONNECTION: Final = frozenset({b"keep-alive", b"Keep-Alive", b"close"})
_HALF: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_MODEL: Final = b'"model"'
_NAME: Final = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*")')


def parse(body: bytes) -> dict[str, Any]:
    """Parse a body as a JSON object. Raises BadRequest or RequestTooLarge.

    An integer beyond 64 bits becomes a float, as it does in llama.cpp.
    """
    if len(body) > _FEW_VALUES_BYTES:
        check_values(body)
    try:
        request = _decode(body)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}", hint="Send one JSON object in UTF-8.") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    if not isinstance(request, dict):
        raise BadRequest("the body is JSON, but not an object", hint="Send one JSON object in UTF-8.")
    return request


def encoded(request: Mapping[str, Any] | str) -> bytes:
    """Encode a request, or a text of one.

    U+FFFD is in place of each half of a surrogate pair, which UTF-8 cannot hold.
    """
    try:
        return orjson.dumps(request)
    except TypeError:  # half of a pair, or an integer beyond 64 bits
        text = json.dumps(request, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def renamed(request: Mapping[str, Any], body: bytes, name: str) -> bytes:
    """Return the body of a request with this name of its model, all else as the client wrote it.

    Encoding a long conversation anew costs as much as the rest of the way to the engine. The name is replaced
    where it stands if only one place can be it: `"model"` is there once, and no key spells it with escapes.
    Else the body is encoded anew, as it is if the request names no model.
    """
    at = body.find(_MODEL)
    after = at + len(_MODEL)
    is_clear = isinstance(request.get("model"), str) and body.find(_MODEL, after) < 0
    # Within a string, a quotation mark comes after a backslash; all letters of the key are \u006x.
    if is_clear and body[at - 1 : at] != b"\\" and b"\\u006" not in body:
        found = _NAME.match(body, after)
        if found is not None:
            start, end = found.span(1)
            return b"".join((body[:start], encoded(name), body[end:]))
    return encoded({**request, "model": name})


def mended(body: bytes) -> bytes:
    """Return a body without halves of surrogate pairs, with which engines refuse it.

    JavaScript writes them where a text was cut within an emoji, and a conversation holds that text for ever.
    """
    if (b"\\ud" not in body and b"\\uD" not in body) or _HALF.search(body) is None:
        return body
    try:
        return encoded(parse(body))
    except BadRequest:
        return body  # whoever parses it says what is wrong


def _decode(body: bytes) -> Any:
    """Do the same as json.loads, which reads what orjson refuses: NaN, halves of surrogate pairs."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body.decode())


def addressed(
    request: dict[str, Any], body: bytes, target: Target | None, router: Router
) -> tuple[str, dict[str, Any], bytes]:
    """Return the model's own name, and the request and its body, as the model's rules have it.

    The own name replaces one in another dialect's form. Without a target, the body has files and is left as
    it is. Raises BadRequest or UnknownModel.
    """
    asked = model_name(request, router)
    try:
        name = router.resolve(asked)
    except UnknownModel:
        asked = served_name(asked, router)
        name = router.resolve(asked)
        body = renamed(request, body, name)
        request["model"] = name
    rules = router.rules(asked)
    if rules is None or target is None:
        return name, request, body
    request = ruled(request, rules, target, name)
    return name, request, encoded(request)


def model_name(request: Mapping[str, Any], router: Router) -> str:
    """Return the model in a request, or the only one served. Raises BadRequest."""
    name = request.get("model")
    if isinstance(name, str):
        return name
    if name is not None:
        raise BadRequest(f"`model` is not a string but {json.dumps(name)[:80]}")
    served = router.models()
    if len(served) != 1:
        names = ", ".join(model.name for model in served) or "none"
        raise BadRequest("the request names no `model`", hint=f"Served: {names}.")
    return served[0].name


def engine_head(path: bytes, endpoint: Endpoint, headers: Sequence[Header], length: int) -> bytes:
    """Render the head for the engine, without hop-by-hop headers and those for this gateway."""
    return b"%b%d\r\n%b\r\n" % (_head_start(path, endpoint), length, _forwarded(headers, _NOT_FORWARDED))


@lru_cache(maxsize=256)
def _head_start(path: bytes, endpoint: Endpoint) -> bytes:
    """Render the part of the head that is the same in all requests, up to the content length."""
    key = "" if endpoint.key is None else f"authorization: Bearer {endpoint.key}\r\n"
    start = f"POST {endpoint.target(path.decode())} HTTP/1.1\r\nhost: {endpoint.authority}\r\n"
    # vLLM refuses another content type, such as that of `curl -d`, or none.
    return f"{start}{key}content-type: application/json\r\ncontent-length: ".encode()


def engine_body(
    path: bytes, request: Mapping[str, Any], body: bytes, endpoint: Endpoint, *, translated: bool
) -> tuple[bytes, bool]:
    """Return the body for an engine, and whether it asks for a stream in place of a plain response.

    It is what the client sent, but for the engine's own name of the model and `keep_alive`, which concerns
    this gateway and which strict servers refuse. More is added only for engines that are known to take it:
    `translated` requests for streams then ask for token counts.
    """
    traits = endpoint.kind and endpoint.kind.traits
    changes: dict[str, Any] = {}
    if endpoint.model is not None and request.get("model") != endpoint.model:
        changes["model"] = endpoint.model
    if translated and traits and traits.counts_streams and request.get("stream"):
        changes["stream_options"] = {"include_usage": True}
    if "keep_alive" in request or len(changes) > ("model" in changes):
        request = {**request, **changes}
        request.pop("keep_alive", None)
        body = encoded(request)
    elif changes:
        body = renamed(request, body, changes["model"])
        request = {**request, **changes}
    as_stream = stream_body(path, request, body) if traits and traits.outruns_clients else None
    return as_stream or body, as_stream is not None


def upload_head(target: Target, endpoint: Endpoint, headers: Sequence[Header], length: int) -> bytes:
    """Render the head for a body that is forwarded as it is, with its type."""
    key = "" if endpoint.key is None else f"authorization: Bearer {endpoint.key}\r\n"
    path = endpoint.target(target.path.decode())
    start = f"{target.method} {path} HTTP/1.1\r\nhost: {endpoint.authority}\r\n{key}"
    forwarded = _forwarded(headers, _NOT_FORWARDED - _OF_BODY)
    return b"%bcontent-length: %d\r\n%b\r\n" % (start.encode(), length, forwarded)


def websocket_head(target: Target, endpoint: Endpoint, headers: Sequence[Header]) -> bytes:
    """Render the head by which an engine is offered a WebSocket."""
    key = "" if endpoint.key is None else f"authorization: Bearer {endpoint.key}\r\n"
    start = f"GET {endpoint.target(target.path.decode())} HTTP/1.1\r\nhost: {endpoint.authority}\r\n{key}"
    offer = "connection: Upgrade\r\nupgrade: websocket\r\n"
    return b"%b%b\r\n" % ((start + offer).encode(), _forwarded(headers, _NOT_FORWARDED))


def _forwarded(headers: Sequence[Header], dropped: frozenset[bytes]) -> bytes:
    lines = []
    for name, value in headers:
        if name not in dropped:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"connection" and value not in _PLAIN_CONNECTION:
            nominated = frozenset(token.strip().lower() for token in value.split(b","))
            if not nominated <= dropped:
                return _forwarded(headers, dropped | nominated)
    return b"".join(lines)
