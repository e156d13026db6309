"""Ollama's API, so that clients of an Ollama daemon work with this one.

    GET  /api/version, /api/tags, /api/ps
    POST /api/show, /api/chat, /api/generate, /api/embed, /api/embeddings, /api/pull

Chats, prompts and embeddings go the way of any other request (`ollama_exchange`). What changes what is on
disk, but for a pull, is the operator's to do and is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from cotenant import __version__
from cotenant.domain.errors import BadRequest, NotOffered, WrongKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway import ollama_models
from cotenant.gateway.asgi import Header, Receive, Scope, Send, send_json
from cotenant.gateway.ask import Ask, Handler, Routes, dispatch
from cotenant.gateway.dialects import CHAT, COMPLETIONS, EMBEDDINGS, Target
from cotenant.gateway.kinds import is_read
from cotenant.gateway.live import LiveStreams
from cotenant.gateway.ollama_answers import vectors
from cotenant.gateway.ollama_exchange import Lines, Translated, Whole, Wrap, as_chat, as_generated, timestamp
from cotenant.gateway.ollama_fields import Fields, items, objects, switch, text
from cotenant.gateway.ollama_pull import PullRoute
from cotenant.gateway.ollama_requests import (
    asks_for_nothing,
    chat_request,
    embed_request,
    generate_request,
    raw_request,
)
from cotenant.gateway.proxy import Exchange, Proxy
from cotenant.gateway.request import parse, whole_body
from cotenant.gateway.terms import read_wishes
from cotenant.interfaces import Lease, LeaseTerms, Operator, Puller

SPOKEN_VERSION: Final = "0.12.0"
"""The version of Ollama whose API this is; clients ask for it to learn what they may send."""

_MAY_UNLOAD: Final = ollama_models.LOADED | {"loading"}
_REFUSED: Final = {
    "/api/delete": ("DELETE", "`cotenant models rm NAME` deletes a model's files."),
    "/api/copy": ("POST", "Give the model an alias in the configuration."),
    "/api/create": ("POST", "Write an entry in the configuration (docs/configuration.md)."),
    "/api/push": ("POST", "Upload the file with the tools of its hub."),
}


class OllamaApi:
    """Answers Ollama's paths. `puller` is None where there is no folder to pull to."""

    def __init__(
        self, proxy: Proxy, operator: Operator | None, streams: LiveStreams, puller: Puller | None
    ) -> None:
        self._proxy = proxy
        self._operator = operator
        self.routes: Routes = {
            "/api/version": {"GET": self._version},
            "/api/tags": {"GET": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._show},
            "/api/chat": {"POST": self._chat},
            "/api/generate": {"POST": self._generate},
            "/api/embed": {"POST": self._embed},
            "/api/embeddings": {"POST": self._embedding},
            "/api/pull": {"POST": PullRoute(puller, streams, proxy.limits).answer},
            **{path: {method: partial(_refuse, hint)} for path, (method, hint) in _REFUSED.items()},
        }

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to a path of `routes`. Raises what requests to models raise, and NotOffered."""
        handlers: Mapping[str, Handler] = self.routes[scope["path"]]
        await dispatch(Ask(scope, receive, send), handlers)

    # What there is.

    async def _version(self, ask: Ask) -> None:
        await send_json(ask.send, 200, {"version": SPOKEN_VERSION, "cotenant": __version__})

    async def _tags(self, ask: Ask) -> None:
        models = [ollama_models.listed(model) for model in self._proxy.router.models()]
        await send_json(ask.send, 200, {"models": models})

    async def _ps(self, ask: Ask) -> None:
        statuses = {status.name: status for status in self._operator.statuses()} if self._operator else {}
        now = datetime.now(UTC)
        models = [
            ollama_models.running(model, statuses.get(model.name), now)
            for model in self._proxy.router.models()
            if model.state in ollama_models.LOADED
        ]
        await send_json(ask.send, 200, {"models": models})

    async def _show(self, ask: Ask) -> None:
        fields = await self._fields(ask)
        if fields is not None:
            await send_json(ask.send, 200, ollama_models.shown(self._model(fields)))

    # What goes to engines.

    async def _chat(self, ask: Ask) -> None:
        fields = await self._fields(ask)
        if fields is None:
            return
        model = self._model(fields)
        if asks_for_nothing(fields):
            await self._load(ask, fields, model, as_chat)
            return
        _check_images(model, any(message.get("images") for message in objects(fields, "messages")))
        await self._stream(ask, fields, CHAT, chat_request(fields, model.name), as_chat)

    async def _generate(self, ask: Ask) -> None:
        fields = await self._fields(ask)
        if fields is None:
            return
        model = self._model(fields)
        if asks_for_nothing(fields):
            await self._load(ask, fields, model, as_generated)
            return
        _check_images(model, bool(items(fields, "images")))
        if switch(fields, "raw", False):
            target, request = COMPLETIONS, raw_request(fields, model.name)
        else:
            target, request = CHAT, generate_request(fields, model.name)
        await self._stream(ask, fields, target, request, as_generated)

    async def _embed(self, ask: Ask) -> None:
        fields = await self._fields(ask)
        if fields is None:
            return
        name, dimensions = text(fields, "model"), fields.get("dimensions")
        now = asyncio.get_running_loop().time
        began_at = now()

        def render(answer: Any) -> dict[str, Any]:
            embeddings = vectors(answer, dimensions)
            usage = answer.get("usage") or {}
            return {
                "model": name,
                "embeddings": embeddings,
                "total_duration": round((now() - began_at) * 1e9),
                "load_duration": round(exchange.waited_s * 1e9),
                "prompt_eval_count": usage.get("prompt_tokens", 0),
            }

        request = embed_request(fields, self._model(fields).name)
        exchange = self._exchange(ask, EMBEDDINGS, request, Whole(ask.send, render))
        await exchange.run()

    async def _embedding(self, ask: Ask) -> None:
        """Answer the older form, of one text."""
        fields = await self._fields(ask)
        if fields is None:
            return
        request = embed_request({**fields, "input": text(fields, "prompt")}, self._model(fields).name)
        whole = Whole(ask.send, lambda answer: {"embedding": vectors(answer, None)[0]})
        await self._exchange(ask, EMBEDDINGS, request, whole).run()

    async def _stream(
        self, ask: Ask, fields: Fields, target: Target, request: dict[str, Any], wrap: Wrap
    ) -> None:
        streaming = switch(fields, "stream", True)
        lines = Lines(ask.send, text(fields, "model"), wrap, lambda: exchange.waited_s, streaming=streaming)
        exchange = self._exchange(ask, target, request, lines)
        await exchange.run()

    def _exchange(self, ask: Ask, target: Target, request: dict[str, Any], send: Send) -> Exchange:
        # Many clients, curl among them, name another type, or none.
        headers: list[Header] = [header for header in ask.headers if header[0] != b"content-type"]
        headers.append((b"content-type", b"application/json"))
        receive = Translated(json.dumps(request).encode(), ask.receive)
        return Exchange(self._proxy, target, headers, receive, send)

    # Loading and unloading.

    async def _load(self, ask: Ask, fields: Fields, model: ServedModel, wrap: Wrap) -> None:
        """Load a model, or have it go once it is idle: what a request without a question asks for."""
        terms = read_wishes(ask.headers, fields).terms
        unloads = terms.keep_alive_s == 0
        if not unloads or model.state in _MAY_UNLOAD:
            lease = await self._lease_unless_left(ask, model.name, terms)
            if lease is None:
                return
            lease.release()
        told = {**wrap("", "", []), "done": True, "done_reason": "unload" if unloads else "load"}
        head = {"model": text(fields, "model"), "created_at": timestamp()}
        await send_json(ask.send, 200, {**head, **told})

    async def _lease_unless_left(self, ask: Ask, name: str, terms: LeaseTerms) -> Lease | None:
        router = self._proxy.router
        lease = router.try_lease(name, terms)
        if lease is not None:
            return lease
        waiting = asyncio.ensure_future(router.lease(name, terms))
        departed = asyncio.ensure_future(_departure(ask.receive))
        try:
            await asyncio.wait({waiting, departed}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            return None
        finally:
            departed.cancel()
            waiting.cancel()
            await asyncio.gather(departed, waiting, return_exceptions=True)

    # What all of them need.

    async def _fields(self, ask: Ask) -> dict[str, Any] | None:
        """Read the body, None if the client left. Raises BadRequest or RequestTooLarge."""
        body = await whole_body(ask.receive, self._proxy.limits)
        return None if body is None else parse(body)

    def _model(self, fields: Fields) -> ServedModel:
        """Find the model that a request names, by either of the fields' names. Raises UnknownModel."""
        name = text(fields, "model") or text(fields, "name")
        if not name:
            raise BadRequest("the request names no `model`", hint="GET /api/tags lists those served.")
        return ollama_models.find(name, self._proxy.router.models())


def _check_images(model: ServedModel, asked: bool) -> None:
    if asked and is_read(model) and not model.vision:
        raise WrongKind(
            f"{model.name} takes no images", hint="Put its vision projector (mmproj) beside its file."
        )


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(hint: str, ask: Ask) -> None:
    raise NotOffered(f"{ask.path} is not offered here", hint=hint)
