"""Pulls models from a hub, with the progress as lines of JSON."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from cotenant.asgi import Header, encode_json, send_json, send_stream
from cotenant.domain.errors import BadRequest, CotenantError
from cotenant.domain.hub import PullStep
from cotenant.gateway.http.limits import Limits, whole_body
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.streams import unless_disconnected
from cotenant.gateway.inference.request import parse
from cotenant.gateway.ollama.fields import switch, text
from cotenant.interfaces import Puller

_NDJSON: Final[Header] = (b"content-type", b"application/x-ndjson")
_SUCCESS: Final = {"status": "success"}


class PullRoute:
    """Handles /api/pull. The pull ends when the client disconnects; downloaded data is kept."""

    def __init__(self, puller: Puller, closing: asyncio.Event, limits: Limits) -> None:
        self._puller = puller
        self._closing = closing
        self._limits = limits

    async def answer(self, request: ApiRequest) -> None:
        """Pull a model. Raises BadRequest, NotOffered, and what a pull raises before its first step."""
        body = await whole_body(request.receive, self._limits)
        if body is None:
            return
        fields = parse(body)
        name = text(fields, "model") or text(fields, "name")
        if not name:
            raise BadRequest("`model` is required", hint="Write hf.co/ORG/REPO:QUANT.")
        streaming = switch(fields, "stream", True)
        async with aclosing(self._puller.pull(name)) as steps:
            if not streaming:
                if await unless_disconnected(request.receive, _to_the_end(steps)):
                    await send_json(request.send, 200, _SUCCESS)
                return
            # The first step is awaited before the response begins, so that errors have their own status.
            first = await unless_disconnected(request.receive, anext(steps))
            if first is not None:
                await send_stream(
                    request.receive, request.send, [_NDJSON], _lines(first, steps), self._closing
                )


async def _to_the_end(steps: AsyncIterator[PullStep]) -> bool:
    async for _ in steps:
        pass
    return True


async def _lines(first: PullStep, steps: AsyncIterator[PullStep]) -> AsyncGenerator[bytes, None]:
    yield encode_json(_as_json(first)) + b"\n"
    try:
        async for step in steps:
            yield encode_json(_as_json(step)) + b"\n"
    except CotenantError as error:
        yield encode_json({"error": f"{error.message}. {error.hint}".rstrip(". ")}) + b"\n"
    else:
        yield encode_json(_SUCCESS) + b"\n"


def _as_json(step: PullStep) -> dict[str, Any]:
    described: dict[str, Any] = {"status": step.what}
    if step.sha256 is not None:
        described["digest"] = f"sha256:{step.sha256}"
    if step.total_bytes is not None:
        described |= {"total": step.total_bytes, "completed": step.completed_bytes}
    return described
