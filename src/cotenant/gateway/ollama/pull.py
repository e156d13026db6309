"""Pulls models from a hub, with the progress as lines of JSON."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from cotenant.asgi import encode_json, send_body, send_stream
from cotenant.domain.errors import BadHubName, BadRequest, CotenantError, HubSilent, NotOffered, NotOnHub
from cotenant.domain.hub import PullStep
from cotenant.domain.keys import KeyScope
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import log_order
from cotenant.gateway.http.streams import unless_disconnected
from cotenant.gateway.ollama.exchange import NDJSON
from cotenant.gateway.ollama.fields import Fields, switch, text
from cotenant.gateway.ollama.models import is_served
from cotenant.interfaces import Puller, Router

_SUCCESS: Final = {"status": "success"}


async def pull(puller: Puller, router: Router, request: ApiRequest, fields: Fields) -> object:
    """Pull a model. Raises Forbidden, BadRequest, NotOffered, and what a pull raises before its first step.

    The pull ends when the client disconnects; downloaded data is kept. What is served
    is here already, whether or not a hub has it: scripts pull their models at every start.
    """
    request.require(KeyScope.ADMIN)
    name = text(fields, "model") or text(fields, "name")
    if not name:
        raise BadRequest("`model` is required", hint="Write hf.co/ORG/REPO:QUANT.")
    log_order(request, f"pull {name[:200]!r}")
    async with aclosing(puller.pull(name)) as steps:
        streaming = switch(fields, "stream", True)
        try:
            # The first step is awaited before the response begins, so that errors have their own status.
            first = await unless_disconnected(request.receive, anext(steps))
        except (BadHubName, NotOffered, NotOnHub, HubSilent):
            if not is_served(name, router):
                raise
            if streaming:
                await send_body(request.send, 200, encode_json(_SUCCESS) + b"\n", NDJSON)
            return None if streaming else _SUCCESS
        if first is None:
            return None
        if not streaming:
            return await unless_disconnected(request.receive, _to_the_end(steps), request.ended())
        await send_stream(request.receive, request.send, [NDJSON], _lines(first, steps), request.ended)
        return None


async def _to_the_end(steps: AsyncIterator[PullStep]) -> object:
    async for _ in steps:
        pass
    return _SUCCESS


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
