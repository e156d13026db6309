"""Ollama's API, so that clients of an Ollama daemon work with this one.

    GET  /api/version, /api/tags, /api/ps
    POST /api/show, /api/chat, /api/generate, /api/embed, /api/embeddings, /api/pull

Chats, prompts and embeddings are forwarded like all other requests (`exchange`). Requests that change files
are refused, except pulls: files are the operator's task.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from cotenant import __version__
from cotenant.domain.errors import BadRequest, NotOffered, UnknownRoute, WrongKind
from cotenant.domain.keys import KeyScope
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.http.codings import decoded
from cotenant.gateway.http.limits import whole_body
from cotenant.gateway.http.model_list import served_name, with_variants
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Handler, log_order
from cotenant.gateway.http.streams import unless_disconnected
from cotenant.gateway.inference.dialects import CHAT, COMPLETIONS, Target
from cotenant.gateway.inference.model_kinds import is_read
from cotenant.gateway.inference.request import parse
from cotenant.gateway.inference.request_options import read_request_options
from cotenant.gateway.inference.shared import Proxy
from cotenant.gateway.ollama import models
from cotenant.gateway.ollama.embed import EmbeddingRequest
from cotenant.gateway.ollama.exchange import LineSender, Wrap, as_chat, as_generated, exchange, timestamp
from cotenant.gateway.ollama.fields import Fields, switch, text
from cotenant.gateway.ollama.pull import pull
from cotenant.gateway.ollama.requests import (
    asks_for_nothing,
    chat_request,
    embed_dimensions,
    embed_texts,
    generate_request,
    raw_request,
    stands_alone,
)
from cotenant.gateway.ollama.responses import vectors
from cotenant.interfaces import Operator, Puller

OLLAMA_VERSION: Final = "0.17.4"
"""The version of Ollama whose API this is; clients request it to learn what is supported."""

_MAY_UNLOAD: Final = models.LOADED | {"loading"}
BLOBS: Final = "/api/blobs/"
READING: Final = frozenset(
    f"/api/{name}" for name in ("version", "tags", "ps", "show", "chat", "generate", "embed", "embeddings")
)
"""Paths of clients, which change no files."""
_CREATE: Final = (
    "Put the file into models_dir, or write an entry in the configuration (docs/configuration.md)."
)
_ACCOUNT: Final = "There are no accounts here."
_REFUSED: Final = {
    "/api/delete": ("DELETE", "`cotenant models rm NAME` deletes a model's files."),
    "/api/copy": ("POST", "Give the model an alias in the configuration."),
    "/api/create": ("POST", _CREATE),
    "/api/push": ("POST", "Upload the file with the tools of its hub."),
    "/api/me": ("POST", _ACCOUNT),
    "/api/signout": ("POST", _ACCOUNT),
}


class OllamaApi:
    """Answers Ollama's paths."""

    def __init__(self, proxy: Proxy, operator: Operator, puller: Puller) -> None:
        self._proxy = proxy
        self._operator = operator
        self.routes: Mapping[str, Mapping[str, Handler]] = {
            "/api/version": {"GET": self._version},
            "/api/tags": {"GET": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._reading(self._show)},
            "/api/chat": {"POST": self._reading(self._chat)},
            "/api/generate": {"POST": self._reading(self._generate)},
            "/api/embed": {"POST": self._reading(self._embed)},
            "/api/embeddings": {"POST": self._reading(self._embedding)},
            "/api/pull": {"POST": self._reading(partial(pull, puller, proxy.router))},
            **{path: {method: partial(_refuse, hint)} for path, (method, hint) in _REFUSED.items()},
            BLOBS: {"GET": _no_blob, "POST": partial(_refuse, _CREATE)},
        }

    def _reading(self, handler: Callable[[ApiRequest, Fields], Awaitable[object]]) -> Handler:
        """Read the body before the handler is called; it is not if the client disconnects.

        Raises BadRequest or RequestTooLarge.
        """

        async def handle(request: ApiRequest) -> object:
            body = await whole_body(request.receive, self._proxy.limits)
            if body is None:
                return None
            return await handler(request, parse(decoded(body, request.headers, self._proxy.limits)))

        return handle

    # Descriptions of models.

    async def _version(self, request: ApiRequest) -> object:
        return {"version": OLLAMA_VERSION, "cotenant": __version__}

    async def _tags(self, request: ApiRequest) -> object:
        served = self._proxy.of(request.key).router.models()
        return {"models": [models.listed(*each) for each in with_variants(served)]}

    async def _ps(self, request: ApiRequest) -> object:
        statuses = {status.name: status for status in self._operator.statuses()}
        now = datetime.now(UTC)
        running = [
            models.running(model, statuses.get(model.name), now)
            for model in self._proxy.of(request.key).router.models()
            if model.state in models.LOADED and not model.members
        ]
        running.sort(key=lambda each: each["expires_at"], reverse=True)
        return {"models": running}

    async def _show(self, request: ApiRequest, fields: Fields) -> object:
        return models.shown(self._model(request, fields, text(fields, "name")))

    # Requests for engines.

    async def _chat(self, request: ApiRequest, fields: Fields) -> object:
        model = self._model(request, fields)
        if asks_for_nothing(fields):
            return await self._load(request, fields, model, as_chat)
        _check_generates(model, "chat")
        engine_request = chat_request(fields, model.name, models.n_ctx(model))
        await self._stream(request, fields, CHAT, engine_request, as_chat)
        return None

    async def _generate(self, request: ApiRequest, fields: Fields) -> object:
        model = self._model(request, fields)
        if asks_for_nothing(fields):
            return await self._load(request, fields, model, as_generated)
        _check_generates(model, "generate")
        if switch(fields, "raw", False) or (_continues(model) and stands_alone(fields)):
            target, translate = COMPLETIONS, raw_request
        else:
            target, translate = CHAT, generate_request
        engine_request = translate(fields, model.name, models.n_ctx(model))
        await self._stream(request, fields, target, engine_request, as_generated)
        return None

    async def _embed(self, request: ApiRequest, fields: Fields) -> object:
        """Embed texts. Those that are too long are truncated, unless the request has `truncate: false`."""
        model = _checked_embedder(self._model(request, fields))
        name, texts, dimensions = text(fields, "model"), embed_texts(fields), embed_dimensions(fields)
        if not texts:
            return {"model": name, "embeddings": []} if await self._hold(request, fields, model) else None
        now = asyncio.get_running_loop().time
        began_at = now()
        embedding = EmbeddingRequest(self._proxy.of(request.key), request, fields, model)
        answer = await embedding.embeddings(texts, cut=switch(fields, "truncate", True))
        if answer is None:
            return None
        return {
            "model": name,
            "embeddings": vectors(answer, dimensions),
            "total_duration": round((now() - began_at) * 1e9),
            "load_duration": round(embedding.waited_s * 1e9),
            "prompt_eval_count": (answer.get("usage") or {}).get("prompt_tokens", 0),
        }

    async def _embedding(self, request: ApiRequest, fields: Fields) -> object:
        """Embed one text, which is refused if it is too long."""
        model, prompt = _checked_embedder(self._model(request, fields)), text(fields, "prompt")
        if not prompt:
            return {"embedding": []} if await self._hold(request, fields, model) else None
        answer = await EmbeddingRequest(self._proxy.of(request.key), request, fields, model).embeddings(
            [prompt], cut=False
        )
        return None if answer is None else {"embedding": vectors(answer, None)[0]}

    async def _stream(
        self, request: ApiRequest, fields: Fields, target: Target, engine_request: dict[str, Any], wrap: Wrap
    ) -> None:
        streaming = switch(fields, "stream", True)
        # A variant has its own rules.
        engine_request["model"] = served_name(text(fields, "model"), self._proxy.of(request.key).router)
        if streaming:
            engine_request["stream"] = True
        lines = LineSender(request.send, text(fields, "model"), wrap, lambda: forwarded.waited_s, streaming)
        forwarded = exchange(
            self._proxy.of(request.key), request, target, engine_request, lines, buffered=not streaming
        )
        await forwarded.run()

    # Loading and unloading.

    async def _load(self, request: ApiRequest, fields: Fields, model: ServedModel, wrap: Wrap) -> object:
        """Load a model, or unload it once it is idle: this is what a request without a prompt does."""
        unloads = _unloads(request, fields)
        if not unloads:
            _check_generates(model, "chat" if wrap is as_chat else "generate")
        if not await self._hold(request, fields, model):
            return None
        head = {"model": text(fields, "model"), "created_at": timestamp()}
        end = {"done": True, "done_reason": "unload" if unloads else "load"}
        return {**head, **wrap("", "", []), **end}

    async def _hold(self, request: ApiRequest, fields: Fields, model: ServedModel) -> bool:
        """Load or unload a model; False if the client disconnects. Raises Forbidden."""
        if _unloads(request, fields):
            request.require(KeyScope.OPERATE)
        log_order(request, f"{'unload' if _unloads(request, fields) else 'load'} {model.name!r}")
        if _unloads(request, fields) and model.state not in _MAY_UNLOAD:
            return True
        router, terms = self._proxy.router, read_request_options(request.headers, fields, request.key).terms
        lease = router.try_lease(model.name, terms) or await unless_disconnected(
            request.receive, router.lease(model.name, terms)
        )
        if lease is None:
            return False
        lease.release()
        return True

    def _model(self, request: ApiRequest, fields: Fields, name: str = "") -> ServedModel:
        """Return the model in a request. Raises UnknownModel."""
        name = text(fields, "model") or name
        if not name:
            raise BadRequest("`model` is required", hint="GET /api/tags lists those served.")
        return models.find(name, self._proxy.of(request.key).router)


def _unloads(request: ApiRequest, fields: Fields) -> bool:
    return read_request_options(request.headers, fields).terms.keep_alive_s == 0


def _continues(model: ServedModel) -> bool:
    """Whether a model only continues texts; Ollama also sends it the prompt unchanged."""
    return is_read(model) and model.file is not None and model.file.chat_template is False


def _check_generates(model: ServedModel, what: str) -> None:
    if is_read(model) and model.kind is not ModelKind.TEXT:
        purpose = "embeddings: use /api/embed" if model.kind is ModelKind.EMBEDDING else model.kind
        raise WrongKind(f'"{model.name}" does not support {what}', hint=f"It is a model for {purpose}.")


def _checked_embedder(model: ServedModel) -> ServedModel:
    if is_read(model) and model.kind is not ModelKind.EMBEDDING:
        raise WrongKind(
            f'"{model.name}" does not support embeddings', hint=f"It is a model for {model.kind}."
        )
    return model


async def _no_blob(request: ApiRequest) -> None:
    """Say that a blob does not exist: clients check this before they upload it."""
    raise UnknownRoute(f"there is no {request.path.removeprefix(BLOBS)[:80]} here")


async def _refuse(hint: str, request: ApiRequest) -> None:
    path = BLOBS.rstrip("/") if request.path.startswith(BLOBS) else request.path
    raise NotOffered(f"{path} is not offered here", hint=hint)
