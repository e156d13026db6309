"""Options of a request for its lease, in our own headers and in Ollama's `keep_alive`.

    X-Cotenant-Keep-Alive     how long the model stays loaded: `10m`, `0` (not at all), `-1` or `forever`
    X-Cotenant-Priority       -10 to 10; a higher one goes first
    X-Cotenant-Timeout        longest wait for a slot, then for the answer: `30s`; `0`: no wait for a slot
    X-Cotenant-Wait-Comments  `1`: send comments on an event stream while the request waits; `0`: nothing

The header takes precedence over `keep_alive` in the body, which is not forwarded: strict servers refuse it. A
key's own priority cannot be exceeded, and how long models stay is not for keys that may only infer: Ollama's
clients send it with every request, so it is ignored.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cotenant.asgi import Header
from cotenant.domain.errors import BadQuantity, BadRequest
from cotenant.domain.keys import ApiKey, KeyScope
from cotenant.domain.requests import DEFAULT_TERMS, LeaseTerms
from cotenant.domain.units import parse_duration

_KEEP_ALIVE: Final = b"x-cotenant-keep-alive"
_PRIORITY: Final = b"x-cotenant-priority"
_TIMEOUT: Final = b"x-cotenant-timeout"
_WAIT_COMMENTS: Final = b"x-cotenant-wait-comments"
TERM_HEADERS: Final = frozenset({_KEEP_ALIVE, _PRIORITY, _TIMEOUT, _WAIT_COMMENTS})

_BEFORE: Final = ("system", "instructions", "tools")
"""Fields that engines put before the conversation."""
_PIECE: Final = 1024
_MOST_KEYS: Final = 64
_MAX_PRIORITY: Final = 10
_MAX_TIMEOUT_S: Final = 3600.0
_MOST_S: Final = 10**12
"""A keep-alive of more seconds, some 30,000 years, is for ever."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The terms of the lease, and whether to send comments while waiting for it; None if not said."""

    terms: LeaseTerms = DEFAULT_TERMS
    wait_comments: bool | None = None


_NONE: Final = RequestOptions()


def read_request_options(
    headers: Sequence[Header],
    request: Mapping[str, Any],
    key: ApiKey | None = None,
    *,
    copies: bool = False,
) -> RequestOptions:
    """Read the options in the headers and the body of a request, as far as its key allows them.

    With several `copies` of the model it matters which conversation it is. Raises BadRequest.
    """
    options = _read_options(headers, request)
    if copies:
        options = replace(options, terms=replace(options.terms, conversation=conversation_keys(request)))
    if key is None or (key.priority is None and options.terms is DEFAULT_TERMS):
        return options
    terms = options.terms
    if key.scope is KeyScope.INFER:
        terms = replace(terms, keep_alive_s=None)
    if key.priority is not None:
        wanted = key.priority if terms.priority is None else terms.priority
        terms = replace(terms, priority=min(wanted, key.priority))
    return replace(options, terms=terms)


def conversation_keys(request: Mapping[str, Any]) -> tuple[int, ...]:
    """Return keys of the beginnings of a request, the shortest first, at most the 64 longest; `()` for none.

    A request that goes on with another one has the last key of that one among its own: it can be served where
    a KV cache has the beginning. Beginnings end after each message, or each 1,024 characters of a prompt.
    Keys are for this process alone.
    """
    key = hash(tuple(_text(request.get(field)) for field in _BEFORE))
    keys = []
    for piece in _pieces(request):
        key = hash((key, piece))
        keys.append(key)
    return tuple(keys[-_MOST_KEYS:])


def _pieces(request: Mapping[str, Any]) -> Iterator[str]:
    for field in ("messages", "input", "prompt"):
        value = request.get(field)
        if isinstance(value, list):
            yield from map(_text, value)
        elif isinstance(value, str):
            yield from (value[at : at + _PIECE] for at in range(0, len(value), _PIECE))


def _text(value: Any) -> str:
    """Return a part of a request as text; of a message what its sender would send again."""
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return f"{value.get('role')}\n{value['content']}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _read_options(headers: Sequence[Header], request: Mapping[str, Any]) -> RequestOptions:
    given = [header for header in headers if header[0] in TERM_HEADERS]
    keep_alive = request.get("keep_alive")
    if not given and keep_alive is None:
        return _NONE
    texts = {name: value.decode("latin-1").strip() for name, value in given}
    if _KEEP_ALIVE in texts:
        keep_alive_s: float | None = _keep_alive("X-Cotenant-Keep-Alive", texts[_KEEP_ALIVE])
    else:
        keep_alive_s = None if keep_alive is None else _keep_alive("`keep_alive`", keep_alive)
    terms = LeaseTerms(
        priority=_priority(texts[_PRIORITY]) if _PRIORITY in texts else None,
        keep_alive_s=keep_alive_s,
        timeout_s=_timeout_s(texts[_TIMEOUT]) if _TIMEOUT in texts else None,
    )
    return RequestOptions(terms, _switch(texts[_WAIT_COMMENTS]) if _WAIT_COMMENTS in texts else None)


def _keep_alive(where: str, value: object) -> float:
    """Return seconds; infinity for `forever` and, as in Ollama, for negative values."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRequest(
            f"{where} is not a duration but {value!r}"[:120],
            hint="Write a duration such as 10m, 0 to unload at once, or -1 to keep it.",
        )
    if not isinstance(value, str) and (value < 0 or value > _MOST_S):
        return math.inf
    text = str(value).strip().removeprefix("+")
    if text.lower() == "forever":
        return math.inf
    if text.startswith("-"):
        return math.inf if _seconds(where, text[1:]) else 0.0
    return _seconds(where, text)


def _seconds(where: str, text: str) -> float:
    try:
        return parse_duration(text)
    except BadQuantity as error:
        raise BadRequest(f"{where}: {error.message}"[:160], hint=error.hint) from None


def _timeout_s(text: str) -> float:
    """Return seconds; bounded, since one client's waiting requests take places in the queue of all."""
    seconds = _seconds("X-Cotenant-Timeout", text)
    if seconds > _MAX_TIMEOUT_S:
        raise BadRequest(f"X-Cotenant-Timeout {text[:40]!r} is over an hour", hint="Write at most 1h.")
    return seconds


def _priority(text: str) -> int:
    try:
        priority = int(text)
    except ValueError:
        priority = _MAX_PRIORITY + 1
    if abs(priority) > _MAX_PRIORITY:
        raise BadRequest(
            f"X-Cotenant-Priority {text!r} is not a priority"[:120],
            hint=f"Write a whole number from {-_MAX_PRIORITY} to {_MAX_PRIORITY}.",
        )
    return priority


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise BadRequest(
            f"X-Cotenant-Wait-Comments {text!r} is not 0 or 1"[:120], hint="Write 1 or leave it out."
        )
    return text == "1"
