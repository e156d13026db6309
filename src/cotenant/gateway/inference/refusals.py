"""Errors of engines, as their clients get them."""

import logging
from collections.abc import Sequence
from typing import Final

from cotenant.asgi import JSON_TYPE, Header
from cotenant.domain.errors import NotOffered, UpstreamFailed
from cotenant.domain.units import KIB
from cotenant.gateway.http.problems import engine_error, error_in, reason_in
from cotenant.gateway.inference.dialects import CHAT, Target, is_foreign
from cotenant.gateway.inference.engine_connections import EngineConnection
from cotenant.gateway.inference.grammar import check_fault

_log = logging.getLogger("cotenant.gateway")

_MAX_ERROR_BYTES: Final = 64 * KIB


async def refusal(reply: EngineConnection, status: int, target: Target) -> tuple[bytes, Sequence[Header]]:
    """Return the body and the headers for the client of an engine's error: unchanged in OpenAI's form.

    Raises NotOffered for a path that the engine does not support, BadRequest for a request that it cannot
    parse, and UpstreamFailed for a redirect.
    """
    path = target.path.decode()
    if status < 400:
        location = reply.location.decode("latin-1")
        raise UpstreamFailed(f"the engine answered {status}, redirecting to {location[:200]!r}")
    body = reply.take()
    while not reply.ended and len(body) <= _MAX_ERROR_BYTES:
        await reply.more()
        body += reply.take()
    if not target.everywhere and is_foreign(status, body):
        said = reason_in(body) if status == 501 else None
        chats = target.kinds == CHAT.kinds
        serve = "erve the model with an engine that does"
        raise NotOffered(
            f"the engine of this model does not support {path}" + (f": {said}" if said else ""),
            hint=f"Use /v1/chat/completions, or s{serve}, as llama.cpp." if chats else f"S{serve}.",
        )
    reason = reason_in(body)
    check_fault(status, reason)
    level = logging.WARNING if status >= 500 else logging.INFO
    _log.log(level, "the engine refused: path=%s status=%s reason=%s", path, status, reason)
    if reply.ended and isinstance(error_in(body), dict):
        return body, reply.headers
    kept = [header for header in reply.headers if header[0] == b"retry-after"]
    return engine_error(status, reason), [JSON_TYPE, *kept]
